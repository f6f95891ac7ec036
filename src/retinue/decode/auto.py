"""The automatic budget: which numbers of visual tokens to try, and when an answer is sure enough.

An answer's confidence lies between 0 and 1; a threshold of 0 takes every answer, one above 1 none.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from retinue.core.errors import ConfigError
from retinue.core.spec import Spec
from retinue.model.spec import Plan

FILE = "auto_budget.json"
"""Where a model's folder keeps the policy that was fitted for it."""
DEFAULT_THRESHOLD = 0.9
"""Least probability of any answer token for models without a fitted policy."""

Measure = Literal["least", "mean", "first"]


def confidence(logprobs: Sequence[float], measure: Measure) -> float:
    """Probability of an answer's least likely token, the geometric mean of all, or the first's."""
    if not logprobs:
        return 0.0
    if measure == "first":
        return math.exp(logprobs[0])
    if measure == "mean":
        return math.exp(sum(logprobs) / len(logprobs))
    return math.exp(min(logprobs))


class Rung(Spec):
    """One try: visual tokens per view, and the least confidence with which its answer is taken."""

    visual_tokens: int = Field(ge=1)
    threshold: float = Field(default=0.0, ge=0)


class AutoBudget(Spec):
    """Budgets to try, ascending; whatever the last one answers is taken.

    measure: what confidence is; `least` ends a hopeless try at its first unlikely token, `first`
    after one token. fitted: what the thresholds were fitted on, for the reader of the file.
    """

    measure: Measure = "least"
    rungs: tuple[Rung, ...] = Field(min_length=1)
    fitted: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        budgets = self.budgets
        if any(late <= early for early, late in itertools.pairwise(budgets)):
            raise ValueError(f"visual_tokens must ascend, not {budgets}")
        return self

    @property
    def budgets(self) -> list[int]:
        return [rung.visual_tokens for rung in self.rungs]

    def enough(self, rung: int, logprobs: Sequence[float]) -> bool:
        """Whether the answer of a rung is taken."""
        if rung == len(self.rungs) - 1:
            return True
        return confidence(logprobs, self.measure) >= self.rungs[rung].threshold

    def hopeless(self, rung: int, logprobs: Sequence[float]) -> bool:
        """Whether an unfinished answer of a rung can no longer be taken."""
        if rung == len(self.rungs) - 1 or self.measure == "mean" or not logprobs:
            return False
        return confidence(logprobs, self.measure) < self.rungs[rung].threshold

    def check(self, plan: Plan) -> None:
        """Raises ConfigError where the model cannot meet one of the budgets."""
        for budget in self.budgets:
            plan.per_view(budget)


def ladder(
    budgets: Sequence[int], thresholds: Sequence[float], *, measure: Measure = "least"
) -> AutoBudget:
    """A policy of budgets in ascending order and a threshold for each but the last.

    Tries that are never taken are left out, and so is what comes after one that always is.
    """
    assert len(thresholds) == len(budgets) - 1, "one threshold for each budget but the last"
    rungs: list[Rung] = []
    for budget, threshold in zip(budgets, [*thresholds, 0.0], strict=True):
        if threshold <= 1:
            rungs.append(Rung(visual_tokens=budget, threshold=threshold))
        if threshold == 0:
            break
    return AutoBudget(measure=measure, rungs=tuple(rungs))


def uniform(budgets: Sequence[int], threshold: float) -> AutoBudget:
    """The same threshold at every budget: 0 is the smallest alone, infinity the largest alone."""
    return ladder(budgets, [threshold] * (len(budgets) - 1))


def read_policy(path: str | Path) -> AutoBudget:
    """A policy from its JSON file. Raises ConfigError naming what is wrong with it."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("no readable policy of budgets", where=str(path), rule=str(error)) from (
            None
        )
    if not isinstance(data, dict):
        raise ConfigError("no policy of budgets", where=str(path), rule="an object with 'rungs'")
    return AutoBudget.parse(data, where=str(path))


def policy_for(
    plan: Plan, *, threshold: float | str | Path | None = None, folder: Path | None = None
) -> AutoBudget:
    """What `auto` means for a model.

    threshold: one number for all its budgets, or a fitted file; None: the file in its folder, else
    DEFAULT_THRESHOLD. Raises ConfigError for a model without a choice of budgets, an unreadable
    file and budgets that the model cannot meet.
    """
    elastic_only(plan, "auto")
    if threshold is None and folder is not None and (folder / FILE).is_file():
        threshold = folder / FILE
    if isinstance(threshold, str):
        threshold = number_or_path(threshold)
    if isinstance(threshold, Path):
        policy = read_policy(threshold)
    else:
        policy = uniform(plan.budgets, DEFAULT_THRESHOLD if threshold is None else threshold)
    policy.check(plan)
    return policy


def number_or_path(text: str) -> float | Path:
    """`0.8`, `inf` or the name of a file. Raises ConfigError for a number that is no threshold."""
    try:
        value = float(text)
    except ValueError:
        return Path(text)
    if not value >= 0:
        raise ConfigError(
            f"{text} is no threshold", rule="a probability from 0; above 1 nothing is sure enough"
        )
    return value


def elastic_only(plan: Plan, asked: object) -> None:
    """Raises ConfigError for a model whose number of visual tokens cannot be chosen."""
    if plan.spec.connector.elastic:
        return
    raise ConfigError(
        f"{asked} visual tokens were asked for",
        where="model.connector",
        rule=f"this model always has {plan.per_view().length} a view, without a choice",
        fix="use a model whose connector is kind: elastic (docs/budgets.md)",
    )
