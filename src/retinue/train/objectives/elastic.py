"""The loss at several numbers of visual tokens, pictures encoded once."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.core.seed import stream_seed
from retinue.ops.branch import Variant, branch_out
from retinue.train.objectives.base import Objective, ObjectiveSpec
from retinue.types import Batch, Output, Visual, VisualTokens

TRUNK = 64
"""Tokens before the first picture from which on a CPU gains by computing them once (measured)."""


class ElasticSpec(ObjectiveSpec):
    """`scales`: visual tokens per view of each forward; empty = those of the model's connector.

    form: packed lays all scales in one row; accumulated takes one after the other and then goes
    back through the encoders once, in the memory of the largest. Losses and gradients are equal.
    sample: so many scales, drawn anew for every update; None = all. tower: `still` keeps gradients
    out of the encoders even where they are trainable, as M3's code does. trunk: tokens before the
    first picture from which on the packed form computes them once for all scales; auto = 64 on a
    CPU, never elsewhere.
    """

    kind: Literal["elastic"] = "elastic"
    scales: list[int] = Field(default_factory=list)
    form: Literal["packed", "accumulated"] = "packed"
    sample: int | None = Field(default=None, ge=1)
    tower: Literal["trained", "still"] = "trained"
    trunk: int | Literal["auto"] | None = "auto"


class Elastic(Objective):
    """Mean over scales of the cross-entropy at each (M3, arXiv 2405.17430, equation 2).

    A document without pictures, the same at every scale, is computed once with full weight.
    Metrics: `loss/36`, the mean over supervised tokens at 36 visual tokens, for every scale used.
    """

    Spec: ClassVar[type[ObjectiveSpec]] = ElasticSpec
    spec: ElasticSpec

    def __init__(self, spec: ElasticSpec) -> None:
        super().__init__(spec)
        self.scales: list[int] = []
        self.drawn: list[int] = []
        self.even = spec.form == "packed"

    def check(self, model: Any) -> None:
        """Raises ConfigError for scales that the model's connector cannot give."""
        plan = model.plan
        self.scales = sorted(self.spec.scales or plan.budgets)
        if not plan.spec.connector.elastic:
            raise ConfigError(
                "objective elastic over a connector of one length",
                where="model.connector",
                rule=f"this {plan.spec.connector.kind!r} always gives {plan.budgets[0]} a view",
                fix="wrap the connector in kind: elastic",
            )
        for scale in self.scales:
            plan.spec.connector.num_tokens(plan.shapes, scale)
        if self.spec.sample is not None and self.spec.sample > len(self.scales):
            raise ConfigError(
                f"sample: {self.spec.sample} of {len(self.scales)} scales",
                where="train.stages.objective",
                rule=f"the scales are {self.scales}",
                fix="drop sample, or name more scales",
            )
        self.drawn = self.scales

    def begin(self, step: int, *, seed: int) -> None:
        if self.spec.sample is not None:
            dice = random.Random(stream_seed(seed, "scales", step))
            self.drawn = sorted(dice.sample(self.scales, self.spec.sample))

    def __call__(self, model: Any, batch: Batch) -> Output:
        outputs = list(self.outputs(model, self.looked(model, batch)))
        if len(outputs) == 1:
            return outputs[0]
        losses = [output.loss_sum for output in outputs if output.loss_sum is not None]
        return Output(
            loss_sum=torch.stack(losses).sum(),
            metrics={name: value for output in outputs for name, value in output.metrics.items()},
        )

    def parts(self, model: Any, batch: Batch) -> Iterator[Output]:
        if self.spec.form == "packed" or batch.visual is None:
            yield self(model, batch)
            return
        batch = self.looked(model, batch)
        assert batch.visual is not None
        assert batch.visual.features is not None
        shared = batch.visual.features.x_NLD
        leaf = shared.detach().requires_grad_(shared.requires_grad)
        features = replace(batch.visual.features, x_NLD=leaf)
        yield from self.outputs(
            model, replace(batch, visual=replace(batch.visual, features=features))
        )
        if leaf.grad is not None:
            with torch.autocast(shared.device.type, enabled=False):
                shared.backward(leaf.grad)

    def looked(self, model: Any, batch: Batch) -> Batch:
        """The batch with its pictures encoded at full length: the only pass of the encoders."""
        if batch.visual is None:
            return batch
        return replace(batch, visual=self.encoded(model, batch.visual))

    def look(self, model: Any, visual: Visual) -> VisualTokens:
        words: VisualTokens = model.look(self.encoded(model, visual))
        return words

    def encoded(self, model: Any, visual: Visual) -> Visual:
        """Pictures with their features."""
        into_tower = torch.is_grad_enabled() and self.spec.tower == "trained"
        with torch.set_grad_enabled(into_tower):
            found = model.encode(visual)
        return replace(visual, features=model.connector.encode(found))

    def outputs(self, model: Any, batch: Batch) -> Iterator[Output]:
        """One output with all scales (packed), or one for each (accumulated)."""
        if not self.scales:
            self.check(model)
        scales = self.drawn if model.training else self.scales
        targets = number_of_targets(batch)
        if batch.visual is None:
            output = model.run(batch)
            mean = output.loss_sum.detach() / targets
            yield replace(output, metrics={name_of(scale): mean for scale in scales})
            return
        variants = [self.variant(model, batch.visual, scale) for scale in scales]
        together = self.spec.form == "packed"
        text = torch.zeros((), device=batch.tokens.device)
        for first in [0] if together else range(len(scales)):
            some = slice(0, None) if together else slice(first, first + 1)
            row, groups_T = branch_out(
                batch,
                variants[some],
                trunk=self.trunk(batch.tokens.device) if together else None,
                weight=1.0 / len(scales),
                text_only=first == 0,
            )
            output = model.run(row)
            text_sum, *sums = sums_of(output, row, groups_T, number=len(variants[some]))
            text = text + text_sum  # computed in the first pass alone
            metrics = {
                name_of(scale): (text + sum_ * len(scales)) / targets
                for scale, sum_ in zip(scales[some], sums, strict=True)
            }
            yield replace(output, metrics=metrics)

    def variant(self, model: Any, visual: Visual, scale: int) -> Variant:
        """All pictures at one scale; one whose budget the data states keeps it."""
        lengths = [
            model.plan.placeholders_for(grid, scale if own is None else own)
            for grid, own in zip(visual.grids, visual.budgets, strict=True)
        ]
        return Variant(budget=scale, lengths=lengths)

    def trunk(self, device: torch.device) -> int | None:
        if self.spec.trunk == "auto":
            return TRUNK if device.type == "cpu" else None
        return self.spec.trunk


def name_of(scale: int) -> str:
    """The metric of a scale."""
    return f"loss/{scale}"


def number_of_targets(batch: Batch) -> Tensor | float:
    """Targets of a batch, weighted where it has weights, at least one."""
    assert batch.supervised is not None, "an objective needs labels"
    if batch.weights is None:
        return float(max(len(batch.supervised), 1))
    return batch.weights.flatten()[batch.supervised].sum().clamp(min=1e-12)


def sums_of(output: Output, row: Batch, groups_T: Tensor, *, number: int) -> Sequence[Tensor]:
    """Weighted losses of tokens that all scales share, then of each of `number` variants."""
    assert output.losses is not None
    assert row.supervised is not None
    assert row.weights is not None
    losses_S = output.losses * row.weights.flatten()[row.supervised]
    sums = losses_S.new_zeros(number + 1).index_add(0, groups_T[row.supervised], losses_S)
    return list(sums.unbind())
