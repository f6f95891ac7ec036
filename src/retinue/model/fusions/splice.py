"""Visual tokens take the places of their placeholders in the sequence.

Legend: B rows, T tokens, D language-model width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from retinue.core.errors import DataError
from retinue.model.fusions.base import Fusion, FusionSpec
from retinue.ops.spans import scatter_tokens
from retinue.types import Batch, Cache, LMInputs, VisualTokens


class SpliceSpec(FusionSpec):
    kind: Literal["splice"] = "splice"

    def num_placeholders(self, num_tokens: int) -> int:
        return num_tokens


class Splice(Fusion):
    """One placeholder id per visual token, overwritten by it (LLaVA, arXiv 2304.08485)."""

    Spec: ClassVar[type[FusionSpec]] = SpliceSpec

    def forward(
        self,
        x_BTD: Tensor,
        words: VisualTokens | None,
        batch: Batch,
        *,
        cache: Cache | None = None,
    ) -> LMInputs:
        if words is not None:
            assert batch.visual is not None
            check_lengths(batch, words)
            x_BTD = scatter_tokens(x_BTD, words.x_TD, batch.visual.index)
        return LMInputs(
            embeds_BTD=x_BTD,
            positions_BT=batch.positions,
            segments_BT=batch.segments,
            cu_seqlens=batch.cu_seqlens,
            branches_BT=batch.branches,
        )


def check_lengths(batch: Batch, words: VisualTokens) -> None:
    """Each item must have as many placeholders as visual tokens, before anything is written."""
    assert batch.visual is not None
    written = batch.visual.spans[:, 2].tolist()
    for item, (have, need) in enumerate(zip(written, words.lengths, strict=True)):
        if have != need:
            row = int(batch.visual.spans[item, 0])
            name = batch.ids[row] if row < len(batch.ids) else f"row {row}"
            raise DataError(
                f"picture {item} of the batch has {have} placeholders for {need} visual tokens",
                where=f"sample {name}",
                rule="processor and model count tokens with the same function of the specs",
                fix="prepare the batch with this model's own processor",
            )
