"""Who attends to whom: one plan per forward, shared by every layer.

Legend: B rows, T queries of a row, S keys of a row, P pieces, H query heads.

A plan is one of
  full     every query sees every key (encoders); `mask_BTS` may hide keys
  causal   the last query of a row sees all its keys, the one before it all but the last, ...
  pieces   documents, or branches of a tree, that see only themselves (and their prefix)
  masked   a dense boolean mask: decoding with cached keys
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

ROW, START, STOP, PREFIX, PREFIX_STOP = range(5)
"""Columns of `AttentionPlan.table`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Which keys each query may see. Built by the `plan_*` functions, never by hand.

    table: (P, 5) int64 on the CPU. A piece is the queries start..stop of a row; it sees the keys
        prefix..prefix_stop of that row, all of them, and start..stop up to itself
    cu_seqlens, real_N: piece boundaries (P + 1,) int32 and flat query positions, on the device,
        for kernels over ragged batches; real_N None = the pieces cover every position in order
    rows: B, where there is a table
    longest: most keys one query sees
    mask_BTS: True where attention is allowed; blank: some query may see no key at all
    memo: dense masks already built, for the layers that follow
    slopes_H: ALiBi (arXiv 2108.12409): minus slope times distance is added to the scores
    """

    kind: Literal["full", "causal", "pieces", "masked"]
    rows: int = 1
    longest: int = 0
    table: Tensor | None = None
    has_prefix: bool = False
    cu_seqlens: Tensor | None = None
    real_N: Tensor | None = None
    mask_BTS: Tensor | None = None
    blank: bool = True
    slopes_H: Tensor | None = None
    memo: dict[tuple[int, int, torch.device], Tensor] = field(default_factory=dict, repr=False)

    def with_alibi(self, slopes_H: Tensor) -> AttentionPlan:
        """The same plan with linear biases, one slope per query head."""
        return replace(self, slopes_H=slopes_H)

    def dense(self, T: int, S: int, device: torch.device) -> Tensor | None:
        """The plan as a boolean mask (B or 1, T, S), True = may see; None = all of it."""
        if self.kind == "full" and self.mask_BTS is None:
            return None
        if self.mask_BTS is not None:
            # a sliding-window cache keeps only the newest keys
            return self.mask_BTS[..., -S:].to(device)
        if self.kind == "causal":
            return torch.ones(1, T, S, dtype=torch.bool, device=device).tril(S - T)
        if (T, S, device) not in self.memo:
            self.memo[T, S, device] = self._dense_pieces(T, S).to(device)
        return self.memo[T, S, device]

    def _dense_pieces(self, T: int, S: int) -> Tensor:
        assert self.table is not None
        mask_BTS = torch.zeros(self.rows, T, S, dtype=torch.bool)
        for row, start, stop, prefix, prefix_stop in self.table.tolist():
            mask_BTS[row, start:stop, prefix:prefix_stop] = True
            n = stop - start
            mask_BTS[row, start:stop, start:stop] = torch.ones(n, n, dtype=torch.bool).tril()
        return mask_BTS


def distances(mask_BTS: Tensor) -> Tensor:
    """Visible keys between a query and each of its keys, (B, T, S): 0 for the newest."""
    return mask_BTS.flip(-1).cumsum(-1).flip(-1) - 1


def plan_full(*, keys_BS: Tensor | None = None) -> AttentionPlan:
    """Every query sees every key, or those marked True in keys_BS."""
    if keys_BS is None:
        return AttentionPlan(kind="full")
    return AttentionPlan(kind="full", mask_BTS=keys_BS.bool()[:, None, :])


def plan_causal() -> AttentionPlan:
    """Rows without padding, each one document; with fewer queries than keys, the last ones ask."""
    return AttentionPlan(kind="causal")


def plan_documents(
    segments_BT: Tensor, *, cu_seqlens: Tensor | None = None, branches_BT: Tensor | None = None
) -> AttentionPlan:
    """Causal attention inside each document of padded or packed rows.

    segments_BT: 0 = padding, otherwise the number of the document, each one contiguous.
    cu_seqlens: (K + 1,) boundaries of a packed row, spares reading the segments.
    branches_BT: 0 = the trunk of a document, which comes first, k = its k-th branch, each one
    contiguous; a branch sees the trunk and itself.
    """
    rows, T = segments_BT.shape
    if branches_BT is not None:
        trees = _tree_pieces(segments_BT, branches_BT)
        return _from_pieces(trees, rows=rows, T=T, device=segments_BT.device)
    if cu_seqlens is not None:
        assert rows == 1, "cu_seqlens describes one packed row"
        cuts: list[int] = cu_seqlens.tolist()
        pieces = [(0, a, b, a, a) for a, b in itertools.pairwise(cuts) if b > a]
        return _from_pieces(pieces, rows=rows, T=T, device=segments_BT.device)
    pieces = [(row, first, stop, first, first) for row, first, stop, _ in runs_of(segments_BT)]
    return _from_pieces(pieces, rows=rows, T=T, device=segments_BT.device)


def runs_of(segments_BT: Tensor) -> list[tuple[int, int, int, int]]:
    """(row, first column, column after the last, number) of every run of one number above 0."""
    rows, T = segments_BT.shape
    change = torch.ones_like(segments_BT, dtype=torch.bool)
    change[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    at = change.flatten().nonzero().flatten()
    starts, values = at.tolist(), segments_BT.flatten()[at].tolist()
    runs = []
    for start, stop, value in zip(starts, [*starts[1:], rows * T], values, strict=True):
        if value > 0:
            row, first = divmod(start, T)
            runs.append((row, first, stop - row * T, value))
    return runs


def _tree_pieces(segments_BT: Tensor, branches_BT: Tensor) -> list[tuple[int, int, int, int, int]]:
    most = int(branches_BT.max()) + 1
    pieces = []
    trunk = (0, 0, 0, 0)
    for row, first, stop, both in runs_of(segments_BT * most + branches_BT * (segments_BT > 0)):
        segment, branch = divmod(both, most)
        if branch == 0:
            trunk = (row, segment, first, stop)
        if branch and trunk[:2] == (row, segment):
            pieces.append((row, first, stop, *trunk[2:]))
        else:
            pieces.append((row, first, stop, first, first))
    return pieces


def plan_tree(
    trees: Sequence[tuple[int, int, Sequence[int]]], *, T: int, device: torch.device
) -> AttentionPlan:
    """One packed row of trees: a shared prefix, then branches that see it and themselves.

    trees: (first position, prefix length, branch lengths), laid out one after the other.
    """
    pieces: list[tuple[int, int, int, int, int]] = []
    for first, prefix, branches in trees:
        at = first + prefix
        if prefix:
            pieces.append((0, first, at, first, first))
        for length in branches:
            if length:
                pieces.append((0, at, at + length, first, first + prefix))
                at += length
        assert at <= T, f"a tree ends at {at}, the row at {T}"
    return _from_pieces(pieces, rows=1, T=T, device=device)


def plan_cached(past_segments_BS: Tensor | None, new_segments_BT: Tensor) -> AttentionPlan:
    """New tokens after cached ones: each sees the cached tokens of its document, then its own.

    past_segments_BS: segments of the cached tokens (0 = padding to be ignored), None = no cache.
    """
    if past_segments_BS is None or past_segments_BS.shape[1] == 0:
        return plan_documents(new_segments_BT)
    T = new_segments_BT.shape[1]
    seen_BS = torch.cat([past_segments_BS, new_segments_BT], 1)
    S = seen_BS.shape[1]
    mask_BTS = new_segments_BT[:, :, None] == seen_BS[:, None, :]
    mask_BTS &= (new_segments_BT > 0)[:, :, None]
    if T > 1:
        mask_BTS &= torch.ones(T, S, dtype=torch.bool, device=seen_BS.device).tril(S - T)
    blank = True
    # asking an accelerator would wait for it; on a CPU it saves work in every layer
    if seen_BS.device.type == "cpu":
        if T == 1 and bool(mask_BTS.all()):
            return AttentionPlan(kind="causal", longest=S)
        blank = bool((new_segments_BT == 0).any())
    return AttentionPlan(kind="masked", longest=S, mask_BTS=mask_BTS, blank=blank)


def _from_pieces(
    pieces: Sequence[tuple[int, int, int, int, int]], *, rows: int, T: int, device: torch.device
) -> AttentionPlan:
    if [piece[:3] for piece in pieces] == [(row, 0, T) for row in range(rows)]:
        return AttentionPlan(kind="causal", longest=T)
    has_prefix = any(p[PREFIX_STOP] > p[PREFIX] for p in pieces)
    longest = max((p[STOP] - p[START] + p[PREFIX_STOP] - p[PREFIX] for p in pieces), default=0)
    flat = [(row * T + start, row * T + stop) for row, start, stop, *_ in pieces]
    lengths = torch.tensor([0, *(b - a for a, b in flat)], dtype=torch.int64)
    real_N = None
    if int(lengths.sum()) != rows * T:
        ranges = [torch.arange(a, b) for a, b in flat]
        real_N = torch.cat([*ranges, torch.zeros(0, dtype=torch.int64)]).to(device)
    return AttentionPlan(
        kind="pieces",
        rows=rows,
        longest=longest,
        table=torch.tensor(pieces, dtype=torch.int64).reshape(-1, 5),
        has_prefix=has_prefix,
        cu_seqlens=lengths.cumsum(0).to(device, torch.int32),
        real_N=real_N,
    )
