"""Rows that decode, side by side in buffers of their own from one step to the next.

Gathering all blocks anew for every token costs more than the attention over them. Here a step adds
a column, a row that joins is copied in, a row that leaves is replaced by the last one. The blocks
are written as always.

Legend: B rows, S columns, C heads of keys and values together, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from retinue.serve.pool import Pool, StepCache
from retinue.serve.request import Running

COLUMNS = 256
"""By which buffers grow; also how many may be there that no row needs."""
ROWS = 8
NUMBERS = itertools.count()


class Mirror(StepCache):
    """A `StepCache` of one new token a row, which remembers.

    A row's tokens stand in the order of their positions; columns between them belong to other rows
    and are masked. The newest token of every row is in the last column. number: its own among all
    of this process.
    """

    def __init__(self, pool: Pool, *, device: torch.device) -> None:
        self.pool, self.device, self.T = pool, device, 1
        self.number = next(NUMBERS)
        self.order: list[Running] = []
        self.held_upto: list[int] = []
        self.kept: dict[tuple[int, str], Tensor] = {}
        self.seen_BS = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.length = -1
        self.segments = None

    def arrange(self, rows: Sequence[Running]) -> list[Running]:
        """Make room for the next token of these rows; the order in which they are to come."""
        wanted = {id(one): one for one in rows}
        for place in reversed(range(len(self.order))):
            one = self.order[place]
            if id(one) not in wanted or self.held_upto[place] != one.computed:
                self._leave(place)
        longest = max(one.computed for one in rows)
        if self.length + 1 > longest + COLUMNS:  # those that needed the columns have gone
            while self.order:
                self._leave(len(self.order) - 1)
        here = {id(one) for one in self.order}
        fresh = [one for one in rows if id(one) not in here]
        self.length = max(self.length + 1 if self.order else 0, longest)
        self._grow(len(self.order) + len(fresh), self.length + 1)
        for one in fresh:
            self._join(one)
        self.rows = len(self.order)
        self.held_upto = [one.computed + 1 for one in self.order]
        size = self.pool.size
        slots = [o.table[o.computed // size] * size + o.computed % size for o in self.order]
        self.new_N = torch.tensor(slots, device=self.device)
        self.past_BP = self.seen_BS[: self.rows, : self.length].clone()
        self.seen_BS[: self.rows, self.length] = 1
        self.uniform = 1 if bool(self.past_BP.all()) else None
        self.segments = None
        return list(self.order)

    def _leave(self, place: int) -> None:
        last = len(self.order) - 1
        if place < last:
            for buffer in self.kept.values():
                buffer[place] = buffer[last]
            self.seen_BS[place] = self.seen_BS[last]
            self.order[place], self.held_upto[place] = self.order[last], self.held_upto[last]
        self.seen_BS[last] = 0
        self.order.pop()
        self.held_upto.pop()

    def _join(self, one: Running) -> None:
        place, start = len(self.order), one.computed
        within = torch.arange(self.pool.size)
        slots = (torch.tensor(one.table)[:, None] * self.pool.size + within).flatten()[:start]
        slots = slots.to(self.device)
        for key, held in self.pool.held.items():
            if key not in self.kept:
                self.kept[key] = self._blank(held)
            own = held.index_select(0, slots.to(held.device))
            self.kept[key][place, :, :start] = own.transpose(0, 1)
        self.seen_BS[place] = 0
        self.seen_BS[place, :start] = 1
        self.order.append(one)

    def _grow(self, rows: int, columns: int) -> None:
        B, S = self.seen_BS.shape
        if rows <= B and columns <= S:
            return
        shape = (max(B, -(-rows // ROWS) * ROWS), max(S, -(-columns // COLUMNS) * COLUMNS))
        old, self.seen_BS = self.seen_BS, self.seen_BS.new_zeros(shape)
        self.seen_BS[:B, :S] = old
        for key, buffer in self.kept.items():
            self.kept[key] = self._blank(self.pool.held[key])
            self.kept[key][:B, :, :S] = buffer

    def _blank(self, held_NCD: Tensor) -> Tensor:
        """An empty buffer: zeros, since what is masked counts with weight 0, which NaN survives."""
        B, S = self.seen_BS.shape
        return held_NCD.new_zeros(B, held_NCD.shape[1], S, held_NCD.shape[2])

    def _exchange(self, layer: int, part: str, new_BCTD: Tensor) -> Tensor:
        held = self.pool.of(layer, part, new_BCTD)
        held.index_copy_(0, self.new_N.to(held.device), new_BCTD[:, :, 0])
        if (layer, part) not in self.kept:  # the first tokens of all
            self.kept[layer, part] = self._blank(held)
        buffer, stop = self.kept[layer, part], self.length + 1
        buffer[: self.rows, :, self.length : stop] = new_BCTD
        return buffer[: self.rows, :, :stop]
