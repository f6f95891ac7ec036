"""The fusion seam: word embeddings and visual tokens -> what the language model eats.

Legend: B rows, T tokens, D language-model width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny
from torch import Tensor, nn

from retinue.core.spec import Spec
from retinue.model.fusions import FUSIONS
from retinue.types import Batch, Cache, LMInputs, VisualTokens

if TYPE_CHECKING:
    from retinue.model.lm.base import LanguageModel


class FusionSpec(Spec):
    kind: str

    @property
    def surplus_marks(self) -> bool:
        """Whether a placeholder may stand without a picture."""
        return False

    @abstractmethod
    def num_placeholders(self, num_tokens: int) -> int:
        """How many ids of the sequence stand for an item of `num_tokens` visual tokens."""


class Fusion(nn.Module):
    """Base of all fusions. Positions belong to it: a fusion may let patches share one."""

    Spec: ClassVar[type[FusionSpec]]

    def __init__(self, spec: Any, lm_width: int) -> None:
        super().__init__()
        self.spec = spec

    def attach(self, lm: LanguageModel, *, media_width: int, image_id: int) -> None:
        """Change the language model once, at build time (add children to its layers).

        media_width: of the visual tokens; image_id: the placeholder id.
        """

    def renew(self, lm: LanguageModel) -> None:
        """Initialised children of the layers, in place of such without data: no file holds them."""

    def copied(self, name: str) -> str | None:
        """Of a child of the layers that starts as a copy: the name of the weight it copies."""
        return None

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        words: VisualTokens | None,
        batch: Batch,
        *,
        cache: Cache | None = None,
    ) -> LMInputs:
        """words is None where the batch has no picture; cache: what decoding keeps, if it does."""


FusionField = Annotated[SerializeAsAny[FusionSpec], BeforeValidator(FUSIONS.spec_of)]
