"""Multi-turn augmentation: a record goes on with further records of its source, as more turns."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random

from pydantic import Field

from retinue.core.errors import DataError
from retinue.core.seed import stream_seed
from retinue.core.spec import Spec
from retinue.data.formats import Format
from retinue.data.formats.collection import Share
from retinue.data.index import LengthIndex
from retinue.types import Sample


class TurnsSpec(Spec):
    """add: most records that follow the first; max_media: pictures and videos of all together.

    The first record that would go beyond max_media ends the conversation.
    """

    add: int = Field(ge=1)
    max_media: int | None = Field(default=None, ge=1)
    seed: int = 0


class Turns:
    """A format whose samples are conversations about several records (arXiv 2307.01003).

    Which records follow is a pure function of seed and record, so lengths can be measured once and
    a run resumes exactly. A record with a system message is never added to another, nor one that
    cannot be read. shares: data sets of the file; each gives followers as often as its ratio says.
    Else all records alike.
    """

    def __init__(self, of: Format, spec: TurnsSpec, *, shares: Sequence[Share] = ()) -> None:
        self.of, self.spec = of, spec
        self.shares = [share for share in shares if len(share.rows)]
        self._bounds = list(accumulate(share.ratio for share in self.shares))

    def __len__(self) -> int:
        return len(self.of)

    def where(self, index: int) -> str:
        return self.of.where(index)

    def _draw(self, draw: Random) -> int:
        if not self.shares:
            return draw.randrange(len(self.of))
        at = bisect_right(self._bounds, draw.random() * self._bounds[-1])
        rows = self.shares[min(at, len(self.shares) - 1)].rows
        return rows[draw.randrange(len(rows))]

    def __getitem__(self, index: int) -> Sample:
        first = self.of[index]
        messages, media = list(first.messages), len(first.media)
        draw = Random(stream_seed(self.spec.seed, "turns", index))
        for _ in range(self.spec.add):
            number = self._draw(draw)
            try:
                other = self.of[number]
            except DataError:  # told of where it opens a conversation itself
                continue
            most = self.spec.max_media
            if most is not None and media + len(other.media) > most:
                break
            if other.messages[0].role != "system":
                messages += other.messages
                media += len(other.media)
        return Sample(id=first.id, messages=tuple(messages), meta=first.meta)

    def estimated(self, index: LengthIndex, *, max_tokens: int | None) -> LengthIndex:
        """Lengths of conversations from those of the records: each with `add` average followers.

        For plans in which lengths decide nothing; measuring thirty records for each of millions
        would take days.
        """
        good = [k for k, tokens in enumerate(index.tokens) if tokens]
        limits = (max_tokens, self.spec.max_media, None)
        made = []
        for own, limit in zip((index.tokens, index.views, index.words), limits, strict=True):
            mean = sum(own[k] for k in good) / max(len(good), 1)
            more = round(self.spec.add * mean)
            most = max(own, default=0) + more if limit is None else limit
            made.append(
                [max(n, min(n + more, most)) if index.tokens[k] else 0 for k, n in enumerate(own)]
            )
        return replace(index, tokens=made[0], views=made[1], words=made[2])
