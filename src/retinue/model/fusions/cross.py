"""Gated cross-attention: words keep their sequence, every N-th layer looks at the pictures.

Legend: B rows, T tokens, S media tokens, L media tokens kept by a row, D language-model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.model.fusions.base import Fusion, FusionSpec
from retinue.model.fusions.gated import GatedBlock, insert
from retinue.ops.cross import (
    CrossPlan,
    Document,
    Order,
    Sees,
    Unseen,
    plan_runs,
    runs_of_document,
)
from retinue.ops.plan import runs_of
from retinue.types import Batch, Cache, LMInputs, Memory, VisualTokens

if TYPE_CHECKING:
    from retinue.model.lm.base import LanguageModel


class CrossSpec(FusionSpec):
    """A block stands before layer i where (i + 1) is a multiple of `every`.

    sees: the nearest picture, or that and all before it. order: whether a picture comes before the
    text that speaks of it (OpenFlamingo v2) or after it (v1). counting ids is the original's rule:
    an `<image>` id counts also where it has no picture, and words that then have nothing to see
    weigh all pictures of the row alike; counting media passes over such ids. decoding lost is v1's
    rule: words decoded with a cache see no picture; kept: they see what they would without one.
    """

    kind: Literal["cross"] = "cross"
    every: int = Field(default=1, ge=1)
    heads: int = Field(default=8, ge=1)
    head_width: int = Field(default=64, ge=1)
    ff_mult: int = Field(default=4, ge=1)
    sees: Sees = "immediate"
    order: Order = "picture_first"
    counting: Literal["media", "ids"] = "media"
    decoding: Literal["kept", "lost"] = "kept"

    def num_placeholders(self, num_tokens: int) -> int:
        """One id per picture, however many tokens it has."""
        return 1

    @property
    def surplus_marks(self) -> bool:
        return self.counting == "ids"

    @property
    def unseen(self) -> Unseen:
        return "even" if self.counting == "ids" else "none"


class Cross(Fusion):
    """Flamingo's fusion (arXiv 2204.14198; OpenFlamingo, arXiv 2308.01390).

    Each picture's mark stays an ordinary token. Keys and values of a picture are computed once; the
    cache holds, per layer and row, those that the following tokens see.
    """

    Spec: ClassVar[type[FusionSpec]] = CrossSpec
    spec: CrossSpec

    def attach(self, lm: LanguageModel, *, media_width: int, image_id: int) -> None:
        """Blocks into every N-th layer; the layers' own parameters keep their names."""
        self.media_width, self.image_id = media_width, image_id
        spec, layers = self.spec, list(lm.layers)
        if spec.every > len(layers):
            raise ConfigError(
                f"a block every {spec.every} layers in a language model of {len(layers)}",
                where="model.fusion.every",
                rule="at least one layer must have a block",
            )
        for number in range(spec.every - 1, len(layers), spec.every):
            block = GatedBlock(
                lm.width,
                media_width,
                number=number,
                heads=spec.heads,
                head_width=spec.head_width,
                mult=spec.ff_mult,
            )
            insert(layers[number], block)

    def renew(self, lm: LanguageModel) -> None:
        self.attach(lm, media_width=self.media_width, image_id=self.image_id)

    def forward(
        self,
        x_BTD: Tensor,
        words: VisualTokens | None,
        batch: Batch,
        *,
        cache: Cache | None = None,
    ) -> LMInputs:
        plan = self.plan(words, batch, cache)
        return LMInputs(
            embeds_BTD=x_BTD,
            positions_BT=batch.positions,
            segments_BT=batch.segments,
            cu_seqlens=batch.cu_seqlens,
            branches_BT=batch.branches,
            memory=Memory(
                x_SD=None if words is None else words.x_TD,
                plan=plan,
                held=None if cache is None else cache.cross,
            ),
        )

    def plan(self, words: VisualTokens | None, batch: Batch, cache: Cache | None) -> CrossPlan:
        """Who sees what in a batch of new tokens, after what the cache's rows have kept."""
        held = next(iter(cache.cross.values()), None) if cache is not None else None
        device, (rows, width) = batch.tokens.device, batch.tokens.shape
        marks, media = self.marks(batch), _media(words, batch)
        if words is None and held is not None and not any(marks):
            return CrossPlan(rows=True)
        if words is None and cache is None:
            return CrossPlan()
        kept = [0] * rows if held is None else held[2].tolist()
        stride = 0 if held is None else held[0].shape[2]
        order: list[int] = []
        documents = []
        for row, start, stop, _ in runs_of(batch.segments):
            bounds = [len(order)]
            if kept[row]:
                order += range(row * stride, row * stride + kept[row])
                bounds.append(len(order))
            for column, first, end in media[row]:
                if start <= column < stop:
                    order += range(rows * stride + first, rows * stride + end)
                    bounds.append(len(order))
            own = [column for column in marks[row] if start <= column < stop]
            documents.append(
                Document(
                    row=row,
                    start=start,
                    stop=stop,
                    marks=own,
                    bounds=bounds,
                    carried=bool(kept[row]),
                )
            )
        spec = self.spec
        runs = [
            run
            for document in documents
            for run in runs_of_document(
                document, sees=spec.sees, order=spec.order, unseen=spec.unseen, width=width
            )
        ]
        keep = None if cache is None else self.keep(documents, rows, device)
        order_S = None
        if held is not None or order != list(range(len(order))):
            order_S = torch.tensor(order, dtype=torch.long, device=device)
        return plan_runs(runs, device=device, order_S=order_S, keep=keep)

    def marks(self, batch: Batch) -> list[list[int]]:
        """Columns of what counts as a picture's mark, per row."""
        found: list[list[int]] = [[] for _ in range(len(batch.tokens))]
        if self.spec.counting == "ids":
            for row, column in (batch.tokens == self.image_id).nonzero().tolist():
                found[row].append(column)
        elif batch.visual is not None:
            for row, column, _ in batch.visual.spans.tolist():
                found[row].append(column)
        return found

    def keep(
        self, documents: list[Document], rows: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(B, L) latents that each row's next tokens see, and how many of them are real."""
        spans = [(0, 0)] * rows
        if self.spec.decoding == "kept" and self.spec.order == "picture_first":
            for document in documents:
                limits = document.bounds
                seen = len(document.marks) + int(document.carried)
                if self.spec.sees == "previous":
                    spans[document.row] = (limits[0], limits[min(seen, len(limits) - 1)])
                elif 0 < seen < len(limits):
                    spans[document.row] = (limits[seen - 1], limits[seen])
        most = max(stop - start for start, stop in spans)
        keep_BL = torch.zeros(rows, most, dtype=torch.long)
        for row, (start, stop) in enumerate(spans):
            keep_BL[row, : stop - start] = torch.arange(start, stop)
        lengths = torch.tensor([stop - start for start, stop in spans])
        return keep_BL.to(device), lengths.to(device)


def _media(words: VisualTokens | None, batch: Batch) -> list[list[tuple[int, int, int]]]:
    """(column of the mark, first token, end) of every medium, by the row it belongs to."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in range(len(batch.tokens))]
    if words is not None:
        assert batch.visual is not None
        at = 0
        for (row, column, _), length in zip(
            batch.visual.spans.tolist(), words.lengths, strict=True
        ):
            found[row].append((column, at, at + length))
            at += length
    return found
