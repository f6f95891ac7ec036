"""Learning-rate schedules: the factor of an update as a pure function of its number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator

from retinue.core.spec import Spec


class ScheduleSpec(Spec):
    """Warm-up from zero, then a decay to `floor` times the base rate.

    warmup: a whole number of updates, or a fraction below 1 of all of them, rounded up (as in
    transformers).
    """

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)
    floor: float = Field(default=0.0, ge=0, le=1)

    @field_validator("warmup")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("warmup is a whole number of updates, or a fraction below 1")
        return value

    def warmup_steps(self, total: int) -> int:
        """Updates of the warm-up in a run of `total`."""
        return math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup)


def factor(step: int, *, spec: ScheduleSpec, total: int) -> float:
    """What the base rate of update `step` (counted from 0) is multiplied with.

    As transformers' schedulers: the first update of a warm-up has rate zero.
    """
    warm = spec.warmup_steps(total)
    if step < warm:
        return step / max(1, warm)
    done = min(1.0, (step - warm) / max(1, total - warm))
    return spec.floor + (1 - spec.floor) * _SHAPES[spec.kind](done)


def _cosine(done: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda done: 1.0 - done,
    "constant": lambda done: 1.0,
}
