"""Learning-rate schedules: the factor of an update as a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator, model_validator

from retinue.core.spec import Spec
from retinue.train.rates import RatePart, listed


class ScheduleSpec(Spec):
    """Warm-up from zero, then a decay to `floor` times the base rate.

    warmup: a whole number of updates, or a fraction below 1 of all of them, rounded up (as in
    transformers). exact: a fraction is not rounded (as in LLaMA2-Accessory).
    parts, with kind list: rates part by part, see `RatePart`.
    """

    kind: Literal["cosine", "linear", "constant", "list"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)
    floor: float = Field(default=0.0, ge=0, le=1)
    parts: tuple[RatePart, ...] = ()

    @model_validator(mode="after")
    def _listed(self) -> ScheduleSpec:
        if (self.kind == "list") != bool(self.parts):
            raise ValueError("kind list and parts go together")
        if self.parts and (self.warmup or self.floor):
            raise ValueError("a list says warm-up and floor itself")
        if any(part.steps is None for part in self.parts[:-1]):
            raise ValueError("every part but the last needs steps")
        return self

    exact: bool = False

    @field_validator("warmup")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("warmup is a whole number of updates, or a fraction below 1")
        return value

    def warmup_steps(self, total: int) -> float:
        """Updates of the warm-up in a run of `total`."""
        if self.exact and self.warmup < 1:
            return self.warmup * total
        return math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup)


def factor(step: int, *, spec: ScheduleSpec, total: int) -> float:
    """What the base rate of update `step` (counted from 0) is multiplied with.

    As transformers' schedulers: the first update of a warm-up has rate zero.
    """
    if spec.parts:
        return listed(spec.parts, step)
    return curve(step, spec=spec, warm=spec.warmup_steps(total), total=total)


def curve(place: float, *, spec: ScheduleSpec, warm: float, total: float) -> float:
    """The factor at any place of a run; place, warm and total in one unit: updates, or epochs."""
    if place < warm:
        return place / warm
    done = min(1.0, (place - warm) / (total - warm)) if total > warm else 1.0
    return spec.floor + (1 - spec.floor) * _SHAPES[spec.kind](done)


def _cosine(done: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda done: 1.0 - done,
    "constant": lambda done: 1.0,
}
