"""The merger seam: tensors of one name, one of each checkpoint, in; the merged tensor out.

Legend: T one tensor of any shape, the same for all that are merged. All are float32 or float64.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny
from torch import Tensor

from retinue.core.spec import OwnSpec
from retinue.hub.merge import MERGERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A checkpoint's tensor, its weight, and the name of the random stream that belongs to it."""

    x_T: Tensor
    weight: float
    stream: str = ""


class Merger(OwnSpec):
    """Base of all methods. A method is its own Spec; it is pure: the same parts, the same result.

    needs_base: it merges differences to a base model; exactly: how many checkpoints it takes, None
    = any number.
    """

    needs_base: ClassVar[bool] = False
    exactly: ClassVar[int | None] = None
    kind: str

    @abstractmethod
    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        """The merged tensor. parts: one or more, of nonzero weight; base_T: the base model's.

        Raises ConfigError where the weights have no meaning for the method.
        """


def _named(data: Any) -> Any:
    return {"kind": data} if isinstance(data, str) else data


MergerField = Annotated[
    SerializeAsAny[Merger], BeforeValidator(MERGERS.spec_of), BeforeValidator(_named)
]
