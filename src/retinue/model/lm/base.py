"""The language-model seam.

Legend: B rows, T tokens, D width, V vocabulary, S any number of positions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from retinue.types import Cache, LMInputs


class LanguageModel(nn.Module):
    """What the path needs of a language model: embed ids, run layers, score the vocabulary."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Of the hidden states."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """Decoder layers in order."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D); ids outside the vocabulary (placeholders) give row 0."""

    @abstractmethod
    def forward(self, inputs: LMInputs, *, cache: Cache | None = None) -> Tensor:
        """(B, T, D) hidden states after the final norm; the cache is extended in place."""

    @abstractmethod
    def logits(self, h_SD: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""

    @abstractmethod
    def losses(
        self, h_SD: Tensor, targets_S: Tensor, weights_S: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum of S cross-entropies (fp32 scalar); each of them, (S,), without gradient."""

    def loss_sum(self, h_SD: Tensor, targets_S: Tensor, weights_S: Tensor | None) -> Tensor:
        """Sum of cross-entropies of S positions, fp32 scalar."""
        return self.losses(h_SD, targets_S, weights_S)[0]

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache for this model."""
