"""The objective seam: model and batch in, loss sum and count out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny

from retinue.core.spec import Spec
from retinue.train.objectives import OBJECTIVES
from retinue.types import Batch, Output, Visual, VisualTokens


class ObjectiveSpec(Spec):
    """What a recipe says of an objective."""

    kind: str


class Objective(ABC):
    """Called for every micro-batch.

    Returns an Output whose `loss_sum` is a sum over the batch's supervised tokens (fp32 scalar with
    a graph) and whose `metrics` are detached scalars to log. The trainer divides.
    """

    Spec: ClassVar[type[ObjectiveSpec]]
    even = True
    """Whether every micro-batch takes each layer once, with pictures or without."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    @abstractmethod
    def __call__(self, model: Any, batch: Batch) -> Output:
        """The loss of a batch in one piece; `model` is a Retinue."""

    def parts(self, model: Any, batch: Batch) -> Iterator[Output]:
        """The same loss as outputs that add up to it; here a single one.

        The trainer goes back through each before it asks for the next, so that only one graph is
        alive; names of metrics stand in one part only.
        """
        yield self(model, batch)

    def look(self, model: Any, visual: Visual) -> VisualTokens:
        """Visual tokens of pictures, with the gradients that this objective wants of them."""
        words: VisualTokens = model.look(visual)
        return words

    def check(self, model: Any) -> None:
        """Raises ConfigError for a model that this objective cannot train; here never."""
        return

    def begin(self, step: int, *, seed: int) -> None:
        """Called before each update; what an objective draws depends on (seed, step) alone."""
        return


ObjectiveField = Annotated[SerializeAsAny[ObjectiveSpec], BeforeValidator(OBJECTIVES.spec_of)]
