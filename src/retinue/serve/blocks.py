"""Which blocks of keys and values belong to whom; no tensors here.

A block holds the keys and values of a fixed number of tokens. Blocks that are full carry the name
of all that led to them (`retinue.serve.prefix`), so that another request with the same opening
finds them. A named block that nobody uses stays findable until its room is needed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

Name = bytes


class Blocks:
    """Counts of users of `total` blocks of `size` tokens; block 0 is a waste bin, never given out.

    idle: blocks without users that can be taken at once; asleep: without users but named, the one
    unused for longest first.
    """

    def __init__(self, total: int, *, size: int) -> None:
        assert total >= 2, "one block to waste and one to use"
        assert size >= 1
        self.total, self.size = total, size
        self.users = [0] * total
        self.idle = list(range(total - 1, 0, -1))
        self.asleep: OrderedDict[int, None] = OrderedDict()
        self.names: dict[int, Name] = {}
        self.known: dict[Name, int] = {}

    @property
    def free(self) -> int:
        """Blocks that can be had."""
        return len(self.idle) + len(self.asleep)

    @property
    def usable(self) -> int:
        """Blocks in all, the waste bin not counted."""
        return self.total - 1

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens fill."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int] | None:
        """Blocks with one user each; None, and nothing taken, where there are not so many."""
        if count > self.free:
            return None
        found = []
        for _ in range(count):
            if self.idle:
                block = self.idle.pop()
            else:
                block, _none = self.asleep.popitem(last=False)
                del self.known[self.names.pop(block)]
            self.users[block] = 1
            found.append(block)
        return found

    def find(self, names: Sequence[Name]) -> list[int]:
        """Blocks of the longest known beginning of a chain of names; nothing is taken."""
        found = []
        for name in names:
            block = self.known.get(name)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """One user more of each."""
        for block in blocks:
            self.asleep.pop(block, None)
            self.users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One user less of each; the last ones of a chain are the first to be forgotten."""
        for block in reversed(blocks):
            assert self.users[block] > 0, f"block {block} is released once too often"
            self.users[block] -= 1
            if self.users[block] == 0:
                if block in self.names:
                    self.asleep[block] = None
                else:
                    self.idle.append(block)

    def name(self, block: int, name: Name) -> None:
        """A full block can be found from now on; a name that another block has stays with that."""
        if name not in self.known and block not in self.names:
            self.known[name] = block
            self.names[block] = name

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the counts are those of these tables and nothing is lost."""
        used = Counter(block for table in tables for block in table)
        assert 0 not in used, "the waste bin is in use"
        for block in range(1, self.total):
            assert self.users[block] == used[block], (
                f"block {block}: {used[block]} users, {self.users[block]} counted"
            )
        unused = {block for block in range(1, self.total) if not self.users[block]}
        assert len(self.idle) == len(set(self.idle)), "a block is idle twice"
        assert not set(self.idle) & set(self.asleep), "a block is idle and asleep"
        assert unused == set(self.idle) | set(self.asleep), "a block is lost"
        assert not set(self.idle) & set(self.names), "an idle block has a name"
        assert {block: name for name, block in self.known.items()} == self.names
