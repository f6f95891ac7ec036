"""Tokens sorted by the expert that works on them, and put back in their places.

Legend: B rows, T tokens, D width, N tokens of one kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Which tokens of a batch are words and which are visual, made once for all layers.

    order: (B * T,) flat positions, words first; back: its inverse; words: how many they are.
    """

    order: Tensor
    back: Tensor
    words: int

    @classmethod
    def of(cls, visual_BT: Tensor) -> Routes | None:
        """Routes of a mask, True at visual tokens; None where there is none of these."""
        flat = visual_BT.flatten()
        order = torch.argsort(flat, stable=True)
        words = len(flat) - int(flat.sum())
        if words == len(flat):
            return None
        return cls(order=order, back=torch.argsort(order), words=words)

    def apply(
        self,
        x_BTD: Tensor,
        words: Callable[[Tensor], Tensor],
        visual: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """`words` on the words and `visual` on the visual tokens, in the order of x."""
        sorted_ND = x_BTD.flatten(0, 1).index_select(0, self.order)
        parts = [words(sorted_ND[: self.words]), visual(sorted_ND[self.words :])]
        return torch.cat(parts).index_select(0, self.back).unflatten(0, x_BTD.shape[:2])
