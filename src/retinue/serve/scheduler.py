"""Who computes how many tokens in the next step; no tensors here.

Rows that decode come first, one token each and outside the budget, then prompts that are half
read, then those that wait, oldest first. A prompt that is longer than the step's budget of tokens
is read in chunks; no chunk shows the encoders more views than the step's budget of views, unless a
picture alone has more. Where blocks run out, the youngest request gives its own back and waits
again at the head of the queue; what it has said so far is kept, so its answer goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from retinue.core.spec import Spec
from retinue.serve.blocks import Blocks, Name
from retinue.serve.request import Running


class Limits(Spec):
    """What one step may cost. tokens, views: of its prompts; rows: requests side by side.

    chunks: prompts may be read in pieces and share blocks; off for models whose state at a token
    is more than keys and values. Then blocks for the whole answer are set aside at admission.
    """

    tokens: int = 1024
    views: int = 16
    rows: int = 64
    chunks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A request's part of a step: its next `count` tokens."""

    running: Running
    count: int


class Scheduler:
    """The queue, the running requests and their blocks.

    views(running, start, stop): views of pictures in these tokens that have yet to be encoded.
    """

    def __init__(
        self, blocks: Blocks, limits: Limits, *, views: Callable[[Running, int, int], int]
    ) -> None:
        self.blocks, self.limits, self.views = blocks, limits, views
        self.waiting: deque[Running] = deque()
        self.running: list[Running] = []
        self.preemptions = 0

    def add(self, running: Running) -> None:
        self.waiting.append(running)

    def remove(self, running: Running) -> None:
        """Forget a request, done or not; its blocks are free for others."""
        if running in self.running:
            self.running.remove(running)
        else:
            self.waiting.remove(running)
        self._give_back(running)

    def schedule(self) -> list[Share]:
        """The next step; empty if there is nothing to do."""
        room, views = self.limits.tokens, self.limits.views
        shares: list[Share] = []
        before = self.preemptions
        order = sorted(self.running, key=lambda one: one.left > 1)  # stable: oldest first
        for one in order:
            if one not in self.running:  # gave its blocks to an older one
                continue
            count, cost = self._chunk(one, one.computed, room, views)
            if count and self._grow(one, one.computed + count, shares):
                shares.append(Share(running=one, count=count))
                room, views = room - count * (one.left > 1), views - cost
        if self.preemptions > before:  # whoever came in now would be sent back soon
            return shares
        return shares + self._admit(room, views)

    def _admit(self, room: int, views: int) -> list[Share]:
        """Shares of requests that leave the queue."""
        shares: list[Share] = []
        coming = {self._next_name(one) for one in self.running if one.left > 1}
        later: list[Running] = []
        while self.waiting and room > 0 and len(self.running) < self.limits.rows:
            one = self.waiting.popleft()
            names = self._names(one)
            found = self.blocks.find(names)
            if len(found) < len(names) and names[len(found)] in coming:
                later.append(one)  # an earlier request is reading just this: wait and share it
                continue
            computed = len(found) * self.blocks.size
            count, cost = self._chunk(one, computed, room, views)
            upto = computed + count if self.limits.chunks else one.most
            self.blocks.share(found)
            need = self.blocks.needed(upto) - len(found)
            spare = len(self.running) if self.limits.chunks else 0  # those running grow, too
            fits = count > 0 and need + spare <= self.blocks.free
            fresh = self.blocks.take(need) if fits else None
            if fresh is None:
                self.blocks.release(found)
                later.append(one)
                break
            one.table, one.computed, one.named = [*found, *fresh], computed, len(found)
            one.cached = max(one.cached, min(computed, one.prompt))
            self.running.append(one)
            shares.append(Share(running=one, count=count))
            room, views = room - count, views - cost
            if one.left > count or len(names) > one.named:
                coming.add(self._next_name(one))
        self.waiting.extendleft(reversed(later))
        return shares

    def _chunk(self, one: Running, start: int, room: int, views: int) -> tuple[int, int]:
        """How many tokens from `start` on, and the views they cost; 0 where nothing fits.

        What has no share in a budget yet may exceed it: nothing is ever too large to come at all.
        """
        left = len(one.tokens) - start
        first = room == self.limits.tokens and views == self.limits.views
        if left == 1:
            return 1, self.views(one, start, start + 1)
        if room < left <= self.limits.tokens and room < self.limits.tokens:
            return 0, 0  # it fits whole into a step to come, which costs less than two pieces
        if not self.limits.chunks and left > 1:
            cost = self.views(one, start, len(one.tokens))
            fits = left <= room and cost <= views
            return (left, cost) if fits or first else (0, 0)
        stop = start + min(left, room)
        cost = self.views(one, start, stop)
        if cost <= views:
            return stop - start, cost
        starts = [run.start for run in one.chain.runs if start <= run.start < stop]
        for cut in sorted(starts, reverse=True):
            cost = self.views(one, start, cut)
            if cut > start and cost <= views:
                return cut - start, cost
        if views < self.limits.views:
            return 0, 0
        # the first picture alone is more than the budget: it gets a step to itself
        ends = [run.start for run in one.chain.runs if start < run.start < stop]
        stop = min(ends, default=stop)
        return stop - start, self.views(one, start, stop)

    def _grow(self, one: Running, upto: int, shares: list[Share]) -> bool:
        """Blocks for tokens up to `upto`; younger ones without a share give theirs if need be."""
        need = self.blocks.needed(upto) - len(one.table)
        if need <= 0:
            return True
        busy = {id(share.running) for share in shares}
        while (fresh := self.blocks.take(need)) is None:
            victim = next(v for v in reversed(self.running) if id(v) not in busy)
            self.preempt(victim)
            if victim is one:
                return False
        one.table += fresh
        return True

    def preempt(self, one: Running) -> None:
        """Back to the head of the queue, without blocks."""
        self.running.remove(one)
        self._give_back(one)
        one.preempted += 1
        self.preemptions += 1
        self.waiting.appendleft(one)

    def _give_back(self, one: Running) -> None:
        self.blocks.release(one.table)
        one.table, one.computed, one.named = [], 0, 0
        one.words.clear()
        one.state.clear()

    def done(self, one: Running, count: int) -> None:
        """`count` tokens more have keys and values; full blocks get their names."""
        one.computed += count
        if self.limits.chunks:
            full = one.computed // self.blocks.size
            names = one.chain.upto(one.tokens, full)
            for number in range(one.named, full):
                self.blocks.name(one.table[number], names[number])
            one.named = max(one.named, full)

    def _names(self, one: Running) -> list[Name]:
        """Names of the blocks that could be found; one token at least is left to compute."""
        if not self.limits.chunks:
            return []
        return one.chain.upto(one.tokens, (len(one.tokens) - 1) // self.blocks.size)

    def _next_name(self, one: Running) -> Name:
        """Of the block that a request is going to fill next, b"" where none will be named."""
        names = self._names(one)
        return names[one.named] if one.named < len(names) else b""

    def check(self) -> None:
        """Raise AssertionError where blocks and requests do not fit together."""
        self.blocks.check([one.table for one in self.running])
        for one in self.waiting:
            assert not one.table, f"{one.id} waits with blocks"
            assert not one.computed, f"{one.id} waits with computed tokens"
        for one in self.running:
            held = len(one.table) * self.blocks.size
            assert one.computed <= held, f"{one.id}: {one.computed} tokens in room for {held}"
            assert one.computed < len(one.tokens), f"{one.id} has nothing left to compute"
            assert one.named <= len(one.table)
