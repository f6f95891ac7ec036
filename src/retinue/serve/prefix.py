"""Names of full blocks: a hash of all ids up to their end, and of the pictures among them.

Placeholders look alike whatever they stand for, so every one that a block holds adds which picture
it shows, at which budget, and which of its tokens.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from retinue.serve.blocks import Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Placeholders from `start` to `stop`; key: their picture's contents, budget and grid."""

    start: int
    stop: int
    key: bytes


class Chain:
    """Names of the blocks of one growing list of ids.

    salt: what else keys and values depend on, an adapter say.
    Source: prefix caching by hashes of blocks, as vLLM has it (arXiv 2309.06180), pictures added.
    """

    def __init__(self, runs: Sequence[Run], *, size: int, salt: bytes = b"") -> None:
        self.runs, self.size, self.salt = runs, size, salt
        self.names: list[Name] = []

    def upto(self, tokens: Sequence[int], count: int) -> list[Name]:
        """Names of the first `count` blocks, all of which are full."""
        while len(self.names) < count:
            start = len(self.names) * self.size
            stop = start + self.size
            assert stop <= len(tokens)
            digest = hashlib.blake2b(self.names[-1] if self.names else self.salt, digest_size=16)
            digest.update(array("q", tokens[start:stop]).tobytes())
            for run in self.runs:
                if run.start < stop and start < run.stop:
                    digest.update(b"%d:%d:" % (run.start - start, len(run.key)) + run.key)
            self.names.append(digest.digest())
        return self.names[:count]
