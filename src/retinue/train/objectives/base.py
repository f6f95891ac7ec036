"""The objective seam: model and batch in, loss sum and count out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from retinue.core.spec import Spec
from retinue.train.objectives import OBJECTIVES
from retinue.types import Batch, Output


class ObjectiveSpec(Spec):
    """What a recipe says of an objective."""

    kind: str


class Objective(ABC):
    """Called once per micro-batch.

    Returns an Output whose `loss_sum` is a sum over the batch's supervised tokens (fp32 scalar with
    a graph) and whose `metrics` are detached scalars to log. The trainer divides.
    """

    Spec: ClassVar[type[ObjectiveSpec]]

    def __init__(self, spec: ObjectiveSpec) -> None:
        self.spec = spec

    @abstractmethod
    def __call__(self, model: Any, batch: Batch) -> Output:
        """One forward; `model` is a Retinue."""


ObjectiveField = Annotated[SerializeAsAny[ObjectiveSpec], BeforeValidator(OBJECTIVES.spec_of)]
