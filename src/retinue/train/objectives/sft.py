"""Next-token prediction on supervised positions."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from retinue.train.objectives.base import Objective, ObjectiveSpec
from retinue.types import Batch, Output


class SftSpec(ObjectiveSpec):
    kind: Literal["sft"] = "sft"


class Sft(Objective):
    """Cross-entropy of the supervised tokens in one forward (LLaVA, arXiv 2304.08485, sec. 4.2)."""

    Spec: ClassVar[type[ObjectiveSpec]] = SftSpec

    def __call__(self, model: Any, batch: Batch) -> Output:
        output: Output = model.run(batch)
        return output
