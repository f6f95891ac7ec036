"""Runs of placeholders: finding them, filling them, and changing their lengths.

Legend: B rows, T tokens of a row, D width, I items, S supervised positions, N source positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from retinue.types import IGNORE, Batch, Visual


def find_runs(ids: Sequence[int], *, placeholder: int) -> list[tuple[int, int]]:
    """(start, length) of every maximal run of `placeholder`."""
    runs: list[tuple[int, int]] = []
    for at, token in enumerate(ids):
        if token != placeholder:
            continue
        if runs and sum(runs[-1]) == at:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((at, 1))
    return runs


def scatter_tokens(x_BTD: Tensor, values_ND: Tensor, index_N: Tensor) -> Tensor:
    """x with the flat positions index_N replaced by values_ND; gradients reach both.

    No boolean masks: an accelerator would have to wait to learn their size.
    """
    flat_XD = x_BTD.reshape(-1, x_BTD.shape[-1])
    return flat_XD.index_copy(0, index_N, values_ND.to(x_BTD.dtype)).view_as(x_BTD)


def gather_tokens(x_BTD: Tensor, index_N: Tensor) -> Tensor:
    """Rows (N, D) of x at flat positions index_N = row * T + column."""
    return x_BTD.reshape(-1, x_BTD.shape[-1]).index_select(0, index_N)


def supervised_index(labels_BT: Tensor) -> Tensor:
    """(S,) flat positions that have a target, in order."""
    return (labels_BT.flatten() != IGNORE).nonzero().flatten()


def positions_from_segments(segments_BT: Tensor) -> Tensor:
    """(B, T) positions counting from 0 in every document; 0 at padding."""
    at_T = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    starts_BT = torch.zeros_like(segments_BT)
    change = segments_BT[:, 1:] != segments_BT[:, :-1]
    starts_BT[:, 1:] = at_T[:, 1:] * change
    return (at_T - starts_BT.cummax(1).values) * (segments_BT > 0)


def span_index(spans_I3: Tensor, *, T: int) -> Tensor:
    """Flat positions of every placeholder of [row, column, length] spans, in span order."""
    row, col, length = spans_I3.unbind(1)
    first = torch.repeat_interleave(row * T + col, length)
    return first + _count_within(length)


def respan(
    batch: Batch,
    lengths: Sequence[int],
    *,
    pad: int = 0,
    side: Literal["left", "right"] | None = None,
) -> Batch:
    """The batch with span i made `lengths[i]` >= 1 placeholders long; budgets stay the caller's.

    A pure gather over tokens, labels, positions and segments. The last placeholder keeps the
    target that follows the run, the others have none; positions continue without gaps; rows are
    padded anew to the longest with token `pad`, on the side where the batch has its padding
    (`side` overrides; a batch without any is padded on the right).
    """
    visual = batch.visual
    if visual is None:
        assert not lengths, f"{len(lengths)} lengths for a batch without pictures"
        return batch
    old_I = visual.spans[:, 2]
    new_I = torch.tensor(lengths, dtype=torch.int64, device=old_I.device)
    assert len(old_I) == len(new_I), f"{len(new_I)} lengths for {len(old_I)} spans"
    assert not lengths or min(lengths) >= 1, "a span keeps at least one placeholder"
    B, T = batch.tokens.shape
    start_I = visual.spans[:, 0] * T + visual.spans[:, 1]
    last_I = start_I + old_I - 1

    # how often every old position appears: padding never, a run as first (m - 1 times) and last
    counts_X = (batch.segments > 0).flatten().long()
    counts_X[visual.index] = 0
    counts_X.index_add_(0, start_I, new_I - 1)
    counts_X.index_add_(0, last_I, torch.ones_like(new_I))
    before_X = counts_X.cumsum(0) - counts_X
    source_N = torch.repeat_interleave(counts_X)

    # where the runs are among the kept tokens, and how far later tokens of a document move
    first_I = before_X[start_I]
    run_N = _ranges(first_I, new_I)
    growth_X = torch.zeros_like(counts_X).index_add_(0, last_I, new_I - old_I)
    growth_X = growth_X.cumsum(0) - growth_X
    documents_X = _document_starts(batch.segments).flatten()
    shift_X = growth_X - growth_X[documents_X]

    place = _Places(counts_X.view(B, T), left=_pads_left(batch.segments, side))
    positions_N = (batch.positions.flatten() + shift_X)[source_N]
    run_start_I = (batch.positions.flatten() + shift_X)[start_I]
    positions_N[run_N] = _ranges(run_start_I, new_I)

    inner_N = _ranges(first_I, new_I - 1)
    labels = batch.labels
    if labels is not None:
        labels = place.put(labels.flatten()[source_N].index_fill(0, inner_N, IGNORE), IGNORE)
    weights = batch.weights
    if weights is not None:
        weights = place.put(weights.flatten()[source_N].index_fill(0, inner_N, 0), 0)
    cu_seqlens = batch.cu_seqlens
    if cu_seqlens is not None:
        ends_X = torch.cat([before_X.new_zeros(1), counts_X.cumsum(0)])
        cu_seqlens = torch.unique_consecutive(ends_X[cu_seqlens.long()]).to(cu_seqlens.dtype)
    flat_I = place.at_N[first_I]
    spans = torch.stack([visual.spans[:, 0], flat_I % place.T, new_I], 1)
    return replace(
        batch,
        tokens=place.put(batch.tokens.flatten()[source_N], pad),
        positions=place.put(positions_N, 0),
        segments=place.put(batch.segments.flatten()[source_N], 0),
        labels=labels,
        supervised=None if labels is None else supervised_index(labels),
        weights=weights,
        cu_seqlens=cu_seqlens,
        visual=_respanned(visual, spans, T=place.T),
    )


def _respanned(visual: Visual, spans: Tensor, *, T: int) -> Visual:
    return replace(visual, spans=spans, index=span_index(spans, T=T))


class _Places:
    """Where kept tokens go in the new (B, T) layout: `at_N`, flat."""

    def __init__(self, counts_BT: Tensor, *, left: bool) -> None:
        lengths_B = counts_BT.sum(1)
        self.B, self.T = len(lengths_B), int(lengths_B.max())
        rows_B = torch.arange(self.B, device=counts_BT.device) * self.T
        self.at_N = _ranges(rows_B + (self.T - lengths_B if left else 0), lengths_B)

    def put(self, values_N: Tensor, fill: int) -> Tensor:
        flat = values_N.new_full((self.B * self.T,), fill)
        return flat.index_copy(0, self.at_N, values_N).view(self.B, self.T)


def _pads_left(segments_BT: Tensor, side: Literal["left", "right"] | None) -> bool:
    if side is not None:
        return side == "left"
    return bool(((segments_BT[:, 0] == 0) & (segments_BT[:, -1] > 0)).any())


def _document_starts(segments_BT: Tensor) -> Tensor:
    """Flat position at which the document of every position starts."""
    B, T = segments_BT.shape
    at_BT = torch.arange(B * T, device=segments_BT.device).view(B, T)
    starts_BT = at_BT * torch.cat(
        [
            torch.ones_like(segments_BT[:, :1], dtype=torch.bool),
            segments_BT[:, 1:] != segments_BT[:, :-1],
        ],
        1,
    )
    return starts_BT.cummax(1).values


def _count_within(lengths_I: Tensor) -> Tensor:
    """0 .. length - 1 for every length, one after the other."""
    ends_I = lengths_I.cumsum(0)
    at = torch.arange(int(lengths_I.sum()), device=lengths_I.device)
    return at - torch.repeat_interleave(ends_I - lengths_I, lengths_I)


def _ranges(starts_I: Tensor, lengths_I: Tensor) -> Tensor:
    """start .. start + length - 1 for every pair, one after the other."""
    return torch.repeat_interleave(starts_I, lengths_I) + _count_within(lengths_I)
