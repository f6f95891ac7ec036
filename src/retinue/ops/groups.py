"""Pieces of a plan gathered into groups that are computed together, and moved in and out.

Legend: B rows, T tokens of a row, P pieces, H heads, D width; n pieces of a group, L tokens of
its longest, X flat tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from retinue.ops.plan import PREFIX, PREFIX_STOP, ROW, START, STOP

SCORES = 2**19
"""Scores (heads x queries x keys) of short pieces handled at once: they should stay in cache."""
WASTE = 1.2
"""Pieces are batched while padding them to the longest costs at most this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pieces of one row and different columns (`ragged`), or of one span in consecutive rows.

    whole: the span is the row, and its keys all there are
    ragged: (start, length) of each piece; they are padded at the end, which a causal mask hides.
    """

    rows: slice
    start: int
    stop: int
    prefix: slice
    short: bool
    whole: bool = False
    ragged: tuple[tuple[int, int], ...] = ()

    @property
    def prefixed(self) -> bool:
        return self.prefix.stop > self.prefix.start

    @property
    def longest(self) -> int:
        return max((length for _, length in self.ragged), default=self.stop - self.start)

    def columns(self) -> Tensor:
        """(n, L) columns of the padded pieces; padding repeats the last column of the row."""
        starts, lengths = torch.tensor(self.ragged).T[:, :, None]
        return starts + torch.arange(self.longest).minimum(lengths - 1)

    def real(self) -> Tensor:
        """(n, L), True where a padded piece has a token."""
        return torch.arange(self.longest) < torch.tensor(self.ragged)[:, 1:]


def whole_rows(B: int, *, T: int, S: int, heads: int, short: int | None) -> Iterator[Group]:
    """Groups of B rows of T queries and S keys without padding or documents."""
    is_short = short is None or short >= S
    step = max(1, SCORES // (heads * T * S)) if is_short else B
    for at in range(0, B, step):
        yield Group(
            rows=slice(at, min(at + step, B)),
            start=0,
            stop=T,
            prefix=slice(0, 0),
            short=is_short,
            whole=True,
        )


def groups_of(table_P5: Tensor, *, heads: int, short: int | None) -> Iterator[Group]:
    """Groups of the pieces; those with at most `short` keys are short (None: all of them).

    A prefix comes before the branches that see it, as in the table.
    """
    table: list[list[int]] = table_P5.tolist()
    many = short is None or short > 0
    if many and all(piece[ROW] == 0 and piece[PREFIX] == piece[PREFIX_STOP] for piece in table):
        yield from _packed(table, heads=heads, short=short)
        return
    for _, same in groupby(enumerate(table), key=lambda at: (at[1][ROW] - at[0], *at[1][START:])):
        pieces = [piece for _, piece in same]
        row, start, stop, prefix, prefix_stop = pieces[0]
        keys = stop - start + prefix_stop - prefix
        is_short = short is None or keys <= short
        step = max(1, SCORES // (heads * keys * (stop - start))) if is_short else len(pieces)
        for at in range(row, row + len(pieces), step):
            yield Group(
                rows=slice(at, min(at + step, row + len(pieces))),
                start=start,
                stop=stop,
                prefix=slice(prefix, prefix_stop),
                short=is_short,
            )


def _packed(table: list[list[int]], *, heads: int, short: int | None) -> Iterator[Group]:
    """Documents of one packed row, short ones by length and several at once."""
    spans = sorted(((piece[STOP] - piece[START], piece[START]) for piece in table), reverse=True)
    at = 0
    while at < len(spans):
        length, start = spans[at]
        is_short = short is None or length <= short
        most = SCORES // (heads * length * length) if is_short else 1
        end, real = at + 1, length
        while end < len(spans) and end - at < most:
            real += spans[end][0]
            if length * (end - at + 1) > WASTE * real:
                break
            end += 1
        one = end == at + 1
        ragged = () if one else tuple((first, n) for n, first in spans[at:end])
        yield Group(
            rows=slice(0, 1),
            start=start,
            stop=start + length,
            prefix=slice(0, 0),
            short=is_short,
            ragged=ragged,
        )
        at = end


def take(x_BHTD: Tensor, group: Group, *, prefix: bool = False, blank: bool = False) -> Tensor:
    """The tokens of a group, (n, H, L, D), after those of its prefix if `prefix`.

    blank: zeros instead of repeated tokens where a piece is padded.
    """
    if group.ragged:
        columns_nL = group.columns()
        x_HXD = x_BHTD[0].index_select(1, columns_nL.flatten())
        x_nHLD = x_HXD.unflatten(1, columns_nL.shape).transpose(0, 1)
        return x_nHLD * group.real()[:, None, :, None] if blank else x_nHLD
    if group.whole:
        return x_BHTD[group.rows]
    own = x_BHTD[group.rows, :, group.start : group.stop]
    if prefix and group.prefixed:
        return torch.cat([x_BHTD[group.rows, :, group.prefix], own], 2)
    return own


def put(buffer_BHTD: Tensor, group: Group, x_nHLD: Tensor) -> None:
    """Write the tokens of a group back; what falls on a prefix is added to what is there."""
    if group.ragged:
        real_X = group.real().flatten()
        x_HXD = x_nHLD.transpose(0, 1).flatten(1, 2)[:, real_X]
        buffer_BHTD[0].index_copy_(
            1, group.columns().flatten()[real_X], x_HXD.to(buffer_BHTD.dtype)
        )
        return
    if group.whole:
        buffer_BHTD[group.rows] = x_nHLD
        return
    own = x_nHLD[:, :, -(group.stop - group.start) :]
    buffer_BHTD[group.rows, :, group.start : group.stop] = own
    if x_nHLD.shape[2] > own.shape[2]:
        before = x_nHLD[:, :, : -own.shape[2]]
        buffer_BHTD[group.rows, :, group.prefix] += before
