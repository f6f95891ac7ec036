"""Learning rates given part by part: what each part says at its own update, counted from 0.

Source: the schedulers of Cerebras ModelZoo 2.x (their formulas; rates here are multiples of the
stage's rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from retinue.core.spec import Spec

Kind = Literal[
    "constant", "linear", "cosine", "polynomial", "exponential", "inverse_sqrt", "piecewise"
]


class RatePart(Spec):
    """One part of a schedule list; start, end and values are multiples of the stage's rate.

    steps: its length; the last part may leave it out and then goes on for ever. power: of
    polynomial; decay: what an exponential rate is multiplied with in `steps` updates; hold: updates
    before an inverse square root falls, whose scale is `start`; values, bounds: of piecewise.
    """

    kind: Kind
    start: float = Field(default=1.0, ge=0)
    end: float = Field(default=0.0, ge=0)
    steps: int | None = Field(default=None, gt=0)
    power: float = Field(default=1.0, gt=0)
    decay: float = Field(default=1.0, gt=0)
    hold: int = Field(default=1, ge=1)
    values: tuple[float, ...] = ()
    bounds: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> RatePart:
        if self.kind in ("linear", "cosine", "polynomial", "exponential") and self.steps is None:
            raise ValueError(f"a part {self.kind!r} needs steps")
        if self.kind == "piecewise" and len(self.values) != len(self.bounds) + 1:
            raise ValueError("piecewise has one value more than bounds")
        return self

    def rate(self, step: int) -> float:
        """The multiple of its `step`-th update."""
        done = min(step, self.steps or step) / (self.steps or 1)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * done
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
        if self.kind == "polynomial":
            return float(self.end + (self.start - self.end) * (1 - done) ** self.power)
        if self.kind == "exponential":
            return float(self.start * self.decay ** (step / (self.steps or 1)))
        if self.kind == "inverse_sqrt":
            return self.start / math.sqrt(max(step, self.hold))
        if self.kind == "piecewise":
            return self.values[sum(step >= bound for bound in self.bounds)]
        return self.start


def listed(parts: Sequence[RatePart], step: int) -> float:
    """The multiple of update `step`: each part in turn, counted from its own beginning."""
    for part in parts[:-1]:
        assert part.steps is not None
        if step < part.steps:
            return part.rate(step)
        step -= part.steps
    return parts[-1].rate(step)
