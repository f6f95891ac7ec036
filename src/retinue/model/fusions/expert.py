"""Visual tokens in the places of their placeholders, with weights of their own in every layer.

Legend: B rows, T tokens, D language-model width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from retinue.model.fusions.base import FusionSpec
from retinue.model.fusions.expert_layer import add_experts
from retinue.model.fusions.splice import Splice, SpliceSpec
from retinue.types import Batch, Cache, LMInputs, VisualTokens

if TYPE_CHECKING:
    from retinue.model.lm.base import LanguageModel

LAG = -1
"""Key in `Cache.cross` of what rows keep: how far their positions lag behind their tokens."""


class ExpertSpec(SpliceSpec):
    """attention, mlp: which parts of a layer have second weights.

    sees: which visual tokens use them; inner = all but the last of each picture (CogVLM), all.
    positions: sequence = as they stand; constant = all visual tokens at position `constant`, words
    where they stand (ModelZoo); shared = the inner tokens of a picture share one position and what
    follows goes on from there (CogVLM).
    """

    kind: Literal["expert"] = "expert"  # type: ignore[assignment]
    attention: bool = True
    mlp: bool = True
    sees: Literal["inner", "all"] = "inner"
    positions: Literal["sequence", "constant", "shared"] = "shared"
    constant: int = 0


class Expert(Splice):
    """Second weights for visual tokens (CogVLM, arXiv 2311.03079); they start as copies.

    With `mlp` alone it is ModelZoo's static dual expert. Text without pictures runs as before.
    """

    Spec: ClassVar[type[FusionSpec]] = ExpertSpec
    spec: ExpertSpec

    def attach(self, lm: LanguageModel, *, media_width: int, image_id: int) -> None:
        if self.spec.attention or self.spec.mlp:
            for layer in lm.layers:
                add_experts(layer, attention=self.spec.attention, mlp=self.spec.mlp)

    def copied(self, name: str) -> str | None:
        for new, old in ((".visual_mlp.", ".mlp."), (".self_attn.visual_", ".self_attn.")):
            if new in name:
                return name.replace(new, old)
        return None

    def forward(
        self,
        x_BTD: Tensor,
        words: VisualTokens | None,
        batch: Batch,
        *,
        cache: Cache | None = None,
    ) -> LMInputs:
        inputs = super().forward(x_BTD, words, batch, cache=cache)
        visual_BT = torch.zeros_like(batch.tokens, dtype=torch.bool)
        shared_BT = torch.zeros_like(visual_BT)
        if batch.visual is not None:
            visual_BT.view(-1)[batch.visual.index] = True
            for row, start, length in batch.visual.spans.tolist():
                if self.spec.sees == "inner" and length:
                    visual_BT[row, start + length - 1] = False
                shared_BT[row, start + 2 : start + length - 1] = True
        own = self.spec.attention or self.spec.mlp
        positions_BT = batch.positions
        if self.spec.positions == "constant" and batch.visual is not None:
            at_BT = torch.zeros_like(visual_BT)
            at_BT.view(-1)[batch.visual.index] = True
            positions_BT = positions_BT.masked_fill(at_BT, self.spec.constant)
        elif self.spec.positions == "shared":
            positions_BT = self.shift(batch, shared_BT, cache)
        return replace(
            inputs,
            positions_BT=positions_BT,
            visual_BT=visual_BT if own and batch.visual is not None else None,
        )

    def shift(self, batch: Batch, shared_BT: Tensor, cache: Cache | None) -> Tensor:
        """Positions less the tokens before that share their predecessor's, in the same document."""
        behind_BT = shared_BT.long().cumsum(1)
        first_BT = torch.ones_like(shared_BT)
        first_BT[:, 1:] = batch.segments[:, 1:] != batch.segments[:, :-1]
        at_BT = torch.arange(behind_BT.shape[1], device=behind_BT.device).expand_as(behind_BT)
        start_BT = at_BT.masked_fill(~first_BT, 0).cummax(1).values
        before_BT = behind_BT - shared_BT.long()
        behind_BT = behind_BT - before_BT.gather(1, start_BT)
        if cache is not None:
            if LAG in cache.cross:
                behind_BT = behind_BT + cache.cross[LAG][0][:, None]
            lag_B = behind_BT.masked_fill(batch.segments == 0, 0).max(dim=1).values
            cache.cross[LAG] = (lag_B, lag_B, lag_B)
        return batch.positions - behind_BT
