"""Thresholds of the automatic budget from rows at fixed budgets.

Which tries to make, how sure an answer must be at each, and what sureness is: the cheapest policy
(in visual tokens of all tries together) whose score is close enough to that of the largest budget,
found on one half of the questions and judged on the other. Pure numpy. Legend: Q questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from retinue.core.errors import DataError
from retinue.decode.auto import AutoBudget, Measure, Rung, confidence

Row = Mapping[str, Any]
Floats = NDArray[np.float64]

PRICES = np.geomspace(1e-3, 3.0, 16)
"""What all visual tokens of the full budget are worth in score, over which the search runs."""
MOST_TRIES = 6
"""Budgets below the full one up to which every subset of tries is looked at."""
SWEEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """What one budget did: (Q,) scores, confidences, visual tokens."""

    budget: int
    score_Q: Floats
    sure_Q: Floats
    cost_Q: Floats

    def only(self, chosen_Q: NDArray[np.bool_]) -> Try:
        """The same of some questions."""
        return replace(
            self,
            score_Q=self.score_Q[chosen_Q],
            sure_Q=self.sure_Q[chosen_Q],
            cost_Q=self.cost_Q[chosen_Q],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Means over questions: the score, and visual tokens of all tries."""

    score: float
    spent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit(Score):
    """A policy and what it reaches on the questions that it was fitted on."""

    policy: AutoBudget


def fit_auto(runs: Mapping[int, Sequence[Row]], *, tolerance: float = 0.005) -> Fit:
    """The cheapest policy within `tolerance` of the largest budget's score.

    runs: budget -> rows of the same questions in one order, with `score`, `logprobs` and
    `visual_tokens_total`. Raises DataError for rows of fewer than two budgets or without those.
    """
    if len(runs) < 2:
        raise DataError(f"answers at {len(runs)} budget", rule="a choice needs two or more")
    full = max(runs)
    if not runs[full] or any("logprobs" not in row for rows in runs.values() for row in rows):
        raise DataError("answers without log-probabilities", fix="--restart")
    target = float(np.mean([row["score"] for row in runs[full]])) - tolerance
    best: Fit | None = None
    cheapest = np.inf
    for measure in get_args(Measure):
        tries = [_try(budget, runs[budget], measure) for budget in sorted(runs)]
        for chain, price in candidates(tries):
            fit, found = crossed(chain, price, measure)
            if found.score >= target - 1e-12 and found.spent < cheapest:
                best, cheapest = fit, found.spent
    assert best is not None, "the largest budget alone reaches its own score"
    fitted = {
        "questions": len(runs[full]),
        "tolerance": tolerance,
        "score": round(best.score, 6),
        "full_score": round(target + tolerance, 6),
        "spent": round(best.spent, 3),
        "full_tokens": round(float(np.mean([r["visual_tokens_total"] for r in runs[full]])), 3),
    }
    return Fit(
        policy=best.policy.model_copy(update={"fitted": fitted}),
        score=best.score,
        spent=best.spent,
    )


def _try(budget: int, rows: Sequence[Row], measure: Measure) -> Try:
    return Try(
        budget=budget,
        score_Q=np.array([row["score"] for row in rows], dtype=np.float64),
        sure_Q=np.array([confidence(row["logprobs"], measure) for row in rows]),
        cost_Q=np.array([row["visual_tokens_total"] for row in rows], dtype=np.float64),
    )


def candidates(tries: Sequence[Try]) -> Iterator[tuple[Sequence[Try], float]]:
    """(tries, price of a token) worth a look: each budget alone, subsets before the full one."""
    for one in tries:
        yield [one], 0.0
    *below, full = tries
    if len(below) > MOST_TRIES:
        subsets: Iterator[Sequence[Try]] = iter([below])
    else:
        subsets = (s for size in range(1, len(below) + 1) for s in combinations(below, size))
    unit = float(full.cost_Q.mean()) or 1.0
    for subset in subsets:
        for price in PRICES:
            yield [*subset, full], price / unit


def crossed(chain: Sequence[Try], price: float, measure: Measure) -> tuple[Fit, Score]:
    """Thresholds from all questions; and what those of one half do on the other, both ways.

    Choosing among many policies by what they reach where they were fitted would prefer luck.
    """
    fit = fit_of(chain, thresholds(chain, price), measure)
    count = len(chain[0].score_Q)
    if len(chain) == 1 or count < 4:
        return fit, Score(score=fit.score, spent=fit.spent)
    halves = [np.arange(count) % 2 == 0, np.arange(count) % 2 == 1]
    score = spent = 0.0
    for here_Q, there_Q in (halves, halves[::-1]):
        limits = thresholds([one.only(here_Q) for one in chain], price)
        other = fit_of([one.only(there_Q) for one in chain], limits, measure)
        share = float(there_Q.mean())
        score, spent = score + share * other.score, spent + share * other.spent
    return fit, Score(score=score, spent=spent)


def thresholds(chain: Sequence[Try], price: float) -> list[float]:
    """Locally best thresholds for score - price * tokens: one at a time, in turns."""
    found = [0.9] * (len(chain) - 1) + [0.0]
    for _ in range(SWEEPS):
        before = list(found)
        for place in reversed(range(len(chain) - 1)):
            here_Q = _reaching(chain, found, place)
            if not here_Q.any():
                continue
            later_Q = _worth_after(chain, found, place, price)
            gain_Q = (chain[place].score_Q - later_Q)[here_Q]
            found[place] = _cut(chain[place].sure_Q[here_Q], gain_Q)
        if found == before:
            break
    return found


def _reaching(chain: Sequence[Try], limits: Sequence[float], place: int) -> NDArray[np.bool_]:
    """Questions that no try before `place` settles."""
    here_Q = np.ones(len(chain[0].score_Q), dtype=bool)
    for one, limit in zip(chain[:place], limits, strict=False):
        here_Q &= one.sure_Q < limit
    return here_Q


def _worth_after(chain: Sequence[Try], limits: Sequence[float], place: int, price: float) -> Floats:
    """(Q,) score - price * tokens of going on after `place`."""
    last = chain[-1]
    worth_Q: Floats = last.score_Q - price * last.cost_Q
    for number in reversed(range(place + 1, len(chain) - 1)):
        one = chain[number]
        taken_Q = np.where(one.sure_Q >= limits[number], one.score_Q, worth_Q)
        worth_Q = taken_Q - price * one.cost_Q
    return worth_Q


def _cut(sure_Q: Floats, gain_Q: Floats) -> float:
    """The threshold above which accepting gains most: midway between neighbours; 2 = never."""
    order = np.argsort(-sure_Q, kind="stable")
    sure, total = sure_Q[order], np.cumsum(gain_Q[order])
    ends = np.append(sure[1:] < sure[:-1], True)  # ties are accepted together
    total = np.where(ends, total, -np.inf)
    best = int(total.argmax())
    if total[best] <= 0:
        return 2.0
    if best == len(sure) - 1:
        return 0.0
    return float((sure[best] + sure[best + 1]) / 2)


def fit_of(chain: Sequence[Try], limits: Sequence[float], measure: Measure) -> Fit:
    """The policy of these thresholds, tried on the questions themselves."""
    kept = [
        (one, limit)
        for one, limit in zip(chain, [*limits[: len(chain) - 1], 0.0], strict=True)
        if limit <= 1
    ]
    stop = next(number for number, (_, limit) in enumerate(kept) if limit == 0)
    kept = kept[: stop + 1]
    score_Q = np.zeros_like(kept[0][0].score_Q)
    spent_Q = np.zeros_like(score_Q)
    left_Q = np.ones(len(score_Q), dtype=bool)
    for number, (one, limit) in enumerate(kept):
        spent_Q[left_Q] += one.cost_Q[left_Q]
        taken_Q = left_Q if number == len(kept) - 1 else left_Q & (one.sure_Q >= limit)
        score_Q[taken_Q] = one.score_Q[taken_Q]
        left_Q = left_Q & ~taken_Q
    rungs = tuple(Rung(visual_tokens=one.budget, threshold=limit) for one, limit in kept)
    policy = AutoBudget(measure=measure, rungs=rungs)
    return Fit(policy=policy, score=float(score_Q.mean()), spent=float(spent_Q.mean()))
