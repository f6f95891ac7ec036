"""A batch in which every picture is there several times, at other numbers of visual tokens.

Legend: X flat tokens of the batch, T tokens of the packed row, I items, R runs of copied tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retinue.ops.plan import runs_of
from retinue.ops.spans import span_index, supervised_index
from retinue.types import IGNORE, Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to show the pictures: the budget, and the placeholders of every item of the batch."""

    budget: int | None
    lengths: Sequence[int]


def branch_out(
    batch: Batch,
    variants: Sequence[Variant],
    *,
    trunk: int | None,
    weight: float = 1.0,
    text_only: bool = True,
) -> tuple[Batch, Tensor]:
    """One packed row with every document once per variant; and (T,) which variant a token is of.

    A document with pictures becomes one document per variant; or, where at least `trunk` tokens
    come before its first picture, a tree of which they are the trunk (None: never). Documents
    without pictures stay single (text_only=False: are left out), and so do tokens of a trunk:
    their variant is 0, that of others counts from 1. Weights of the others are multiplied by
    `weight`. The last placeholder of a run keeps the target that follows it. Pictures themselves
    are shared: items come variant after variant, `visual.shown` says what they show.
    """
    visual = batch.visual
    assert visual is not None, "a batch without pictures has no variants"
    assert visual.shown is None, "its items share pictures already"
    assert batch.branches is None, "its documents are trees already"
    T = batch.tokens.shape[1]
    items: dict[int, list[tuple[int, int, int]]] = {}
    for number, (row, column, length) in enumerate(visual.spans.tolist()):
        items.setdefault(row, []).append((row * T + column, length, number))
    packed = _Row(variants, num_items=len(visual.grids))
    for row, first, stop, _ in runs_of(batch.segments):
        start, end = row * T + first, row * T + stop
        held = sorted(item for item in items.get(row, ()) if start <= item[0] < end)
        before = held[0][0] - start if held else 0
        if not held:
            if text_only:
                packed.document()
                packed.copy(start, end)
        elif trunk is not None and before >= max(trunk, 1):
            packed.document()
            packed.copy(start, start + before)
            for number in range(1, len(variants) + 1):
                packed.variant(start + before, end, held, number=number, branch=number)
        else:
            for number in range(1, len(variants) + 1):
                packed.document()
                packed.variant(start, end, held, number=number, branch=0)
    return packed.gather(batch, variants, weight=weight)


class _Row:
    """The packed row while it is laid out: runs of tokens and where the items are.

    A run is [first flat position in the batch, length, step from token to token (0: one token
    repeated), what is added to positions, document, branch, variant].
    """

    def __init__(self, variants: Sequence[Variant], *, num_items: int) -> None:
        self.variants, self.at, self.segment = variants, 0, 0
        self.runs: list[list[int]] = []
        self.bounds: list[int] = []
        self.places = [[0] * num_items for _ in variants]

    def document(self) -> None:
        self.bounds.append(self.at)
        self.segment += 1

    def copy(
        self, start: int, end: int, *, shift: int = 0, branch: int = 0, number: int = 0
    ) -> None:
        self.add([start, end - start, 1, shift, self.segment, branch, number])

    def add(self, run: list[int]) -> None:
        if run[1]:
            self.runs.append(run)
            self.at += run[1]

    def variant(
        self, start: int, end: int, held: list[tuple[int, int, int]], *, number: int, branch: int
    ) -> None:
        """Text from start to end, the items between at their lengths in this variant."""
        shift = 0
        for place, old, item in held:
            new = self.variants[number - 1].lengths[item]
            assert new >= 1, "an item keeps at least one placeholder"
            self.copy(start, place, shift=shift, branch=branch, number=number)
            self.places[number - 1][item] = self.at
            self.add([place, new - 1, 0, shift, self.segment, branch, number])
            shift += new - old
            start = place + old
            self.copy(start - 1, start, shift=shift, branch=branch, number=number)
        self.copy(start, end, shift=shift, branch=branch, number=number)

    def gather(
        self, batch: Batch, variants: Sequence[Variant], *, weight: float
    ) -> tuple[Batch, Tensor]:
        visual = batch.visual
        assert visual is not None
        device = batch.tokens.device
        runs_R7 = torch.tensor(self.runs, dtype=torch.int64).reshape(-1, 7)
        lengths_R = runs_R7[:, 1]
        runs_T7 = runs_R7.repeat_interleave(lengths_R, 0)
        begin_R = lengths_R.cumsum(0) - lengths_R
        within_T = torch.arange(self.at) - begin_R.repeat_interleave(lengths_R)
        start_T, _, step_T, shift_T, segment_T, branch_T, number_T = runs_T7.to(device).unbind(1)
        within_T = within_T.to(device)
        source_T = start_T + within_T * step_T

        def take(x_BT: Tensor) -> Tensor:
            return x_BT.flatten()[source_T][None]

        positions = take(batch.positions) + shift_T + within_T * (1 - step_T)
        labels = supervised = weights = None
        if batch.labels is not None:
            labels = take(batch.labels).masked_fill(step_T == 0, IGNORE)
            supervised = supervised_index(labels)
            scales_T = torch.where(number_T > 0, weight, 1.0)[None]
            weights = scales_T if batch.weights is None else scales_T * take(batch.weights)
        spans = torch.tensor(
            [
                [0, place, length]
                for places, variant in zip(self.places, variants, strict=True)
                for place, length in zip(places, variant.lengths, strict=True)
            ]
        ).to(device)
        many = len(variants)
        found = replace(
            batch,
            tokens=take(batch.tokens),
            positions=positions,
            segments=segment_T[None],
            labels=labels,
            supervised=supervised,
            weights=weights,
            cu_seqlens=torch.tensor([*self.bounds, self.at], dtype=torch.int32).to(device),
            branches=branch_T[None] if bool((runs_R7[:, 5] > 0).any()) else None,
            visual=replace(
                visual,
                grids=visual.grids * many,
                budgets=[
                    variant.budget if own is None else own
                    for variant in variants
                    for own in visual.budgets
                ],
                spans=spans,
                index=span_index(spans, T=self.at),
                shown=list(range(len(visual.grids))) * many,
            ),
        )
        return found, number_T
