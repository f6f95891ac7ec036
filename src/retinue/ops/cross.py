"""Cross-attention of words to the media they may see: runs of words on flat sequences.

Legend: B rows, T tokens of a row, N tokens that see something, S media tokens (latents) in order,
L media tokens that one row keeps, H heads, D head width, P runs of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Sees = Literal["immediate", "previous"]
Order = Literal["picture_first", "text_first"]
Unseen = Literal["none", "even"]
Run = tuple[int, int, int, int, bool]
"""First token and the one after the last (flat), first latent and the one after, weights even."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a row: its tokens start..stop, the columns of its media marks, its media.

    bounds: first latent of each medium, then the end of the last. carried: the first of these media
    stands for what the row has seen in earlier chunks.
    """

    row: int
    start: int
    stop: int
    marks: Sequence[int]
    bounds: Sequence[int]
    carried: bool = False


def runs_of_document(
    document: Document, *, sees: Sees, order: Order, unseen: Unseen, width: int
) -> list[Run]:
    """Which latents the tokens of a document see; tokens that see nothing are in no run.

    picture_first: a token sees the medium whose mark is the last up to itself (OpenFlamingo v2,
    arXiv 2308.01390); text_first: the one whose mark is the next from itself on (its v1), none
    after the last mark. sees previous: that medium and all before it. unseen even: a token with
    nothing to see, or with a mark that has no medium, weighs all latents of the row alike, as a
    softmax over equal scores does. width: T.
    """
    at = document.row * width
    marks = sorted(document.marks)
    if order == "picture_first":
        edges = [document.start, *marks, document.stop]
        times = [*range(len(marks) + 1)]
    else:
        edges = [document.start, *(mark + 1 for mark in marks), document.stop]
        times = [*range(1, len(marks) + 1), 0]
    found: list[Run] = []
    for number, time in enumerate(times):
        first, stop = edges[number], edges[number + 1]
        if stop > first:
            span = _visible(document, time, sees=sees, order=order, unseen=unseen)
            if span is not None:
                found.append((at + first, at + stop, *span))
    return found


def _visible(
    document: Document, time: int, *, sees: Sees, order: Order, unseen: Unseen
) -> tuple[int, int, bool] | None:
    bounds, blind = document.bounds, time == 0
    if document.carried and order == "picture_first":
        time, blind = time + 1, False
    most = len(bounds) - 1
    if most < 1 or bounds[-1] == bounds[0]:
        return None
    if sees == "previous":
        if blind:
            return (bounds[0], bounds[-1], True) if unseen == "even" else None
        return bounds[0], bounds[min(time, most)], False
    if time > most:
        return (bounds[0], bounds[-1], True) if unseen == "even" else None
    if blind or bounds[time] == bounds[time - 1]:
        return None
    return bounds[time - 1], bounds[time], False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """P runs of equal shape: flat indices of their queries (P * T) and latents (P * L)."""

    query_X: Tensor
    key_X: Tensor
    shape: tuple[int, int, int]
    even: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossPlan:
    """Who sees which media tokens, for every layer of one forward.

    rows: every token sees what its row keeps in the cache; nothing else is set then
    seen_N: flat positions of the tokens that see something, None = none does
    groups, place_N: runs by shape, and where each token's result is among the groups' outputs
    order_S: latents as positions in [kept ones of all rows, flat; new ones], None = the new ones
    keep_BL, keep_B: latents that each row keeps for the tokens after these, and how many
    """

    rows: bool = False
    seen_N: Tensor | None = None
    groups: list[Group] = field(default_factory=list)
    place_N: Tensor | None = None
    order_S: Tensor | None = None
    keep_BL: Tensor | None = None
    keep_B: Tensor | None = None


def plan_runs(
    runs: Sequence[Run],
    *,
    device: torch.device,
    order_S: Tensor | None = None,
    keep: tuple[Tensor, Tensor] | None = None,
) -> CrossPlan:
    """The plan of some runs. On an accelerator runs share one padded shape, on a CPU exact ones."""
    keep_BL, keep_B = (None, None) if keep is None else keep
    if not runs:
        return CrossPlan(order_S=order_S, keep_BL=keep_BL, keep_B=keep_B)
    shapes: dict[tuple[int, int, bool], list[Run]] = {}
    for run in runs:
        length = run[1] - run[0]
        if device.type != "cpu":
            length = 1 << (length - 1).bit_length()
        shapes.setdefault((length, run[3] - run[2], run[4]), []).append(run)
    groups, tokens, places, base = [], [], [], 0
    for (length, latents, even), members in shapes.items():
        starts = torch.tensor([run[0] for run in members])[:, None]
        sizes = torch.tensor([run[1] - run[0] for run in members])[:, None]
        steps = torch.arange(length)[None]
        # a shorter run repeats its last token; nobody reads those results
        query_PT = starts + torch.minimum(steps, sizes - 1)
        key_PL = torch.tensor([run[2] for run in members])[:, None] + torch.arange(latents)[None]
        real_PT = steps < sizes
        tokens.append(query_PT[real_PT])
        places.append(base + real_PT.flatten().nonzero().flatten())
        base += query_PT.numel()
        shape = (len(members), length, latents)
        groups.append(
            Group(query_X=query_PT.flatten(), key_X=key_PL.flatten(), shape=shape, even=even)
        )
    seen_N, sort = torch.cat(tokens).sort()
    rank = torch.zeros(int(seen_N[-1]) + 1, dtype=torch.long)
    rank[seen_N] = torch.arange(len(seen_N))
    moved = [
        Group(
            query_X=rank[group.query_X].to(device),
            key_X=group.key_X.to(device),
            shape=group.shape,
            even=group.even,
        )
        for group in groups
    ]
    return CrossPlan(
        seen_N=seen_N.to(device),
        groups=moved,
        place_N=torch.cat(places)[sort].to(device),
        order_S=order_S,
        keep_BL=keep_BL,
        keep_B=keep_B,
    )


def attend_runs(q_NHD: Tensor, k_SHD: Tensor, v_SHD: Tensor, plan: CrossPlan) -> Tensor:
    """(N, H, D): every token attends to the latents of its run and to no others."""
    assert plan.place_N is not None
    parts = []
    for group in plan.groups:
        P, T, L = group.shape
        v_PLHD = v_SHD[group.key_X].unflatten(0, (P, L))
        if group.even:
            mean_PHD = v_PLHD.float().mean(1).to(v_SHD.dtype)
            parts.append(mean_PHD.repeat_interleave(T, 0))
            continue
        q_PTHD = q_NHD[group.query_X].unflatten(0, (P, T))
        k_PLHD = k_SHD[group.key_X].unflatten(0, (P, L))
        out_PHTD = scaled_dot_product_attention(
            q_PTHD.transpose(1, 2), k_PLHD.transpose(1, 2), v_PLHD.transpose(1, 2)
        )
        parts.append(out_PHTD.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[plan.place_N] if len(parts) > 1 else parts[0][plan.place_N]


def attend_rows(q_BTHD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, lengths_B: Tensor) -> Tensor:
    """(B, T, H, D): all tokens of a row attend to the first lengths[row] latents; 0 gives zeros."""
    L = k_BHLD.shape[2]
    mask = None
    if lengths_B.device.type != "cpu" or bool((lengths_B < L).any()):
        steps_L = torch.arange(L, device=lengths_B.device)
        # rows that see nothing look at all, and are blanked below: kernels disagree on them
        mask = (steps_L[None] < lengths_B[:, None]) | (lengths_B == 0)[:, None]
        mask = mask[:, None, None]
    out_BTHD = scaled_dot_product_attention(
        q_BTHD.transpose(1, 2), k_BHLD, v_BHLD, attn_mask=mask
    ).transpose(1, 2)
    if mask is None:
        return out_BTHD
    return out_BTHD.masked_fill((lengths_B == 0)[:, None, None, None], 0.0)
