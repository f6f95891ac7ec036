"""Multi-turn augmentation: a record goes on with further records of its source, as more turns."""

from __future__ import annotations

from random import Random

from pydantic import Field

from retinue.core.seed import stream_seed
from retinue.core.spec import Spec
from retinue.data.formats import Format
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
    a run resumes exactly. A record with a system message is never added to another.
    """

    def __init__(self, of: Format, spec: TurnsSpec) -> None:
        self.of, self.spec = of, spec

    def __len__(self) -> int:
        return len(self.of)

    def where(self, index: int) -> str:
        return self.of.where(index)

    def __getitem__(self, index: int) -> Sample:
        first = self.of[index]
        messages, media = list(first.messages), len(first.media)
        draw = Random(stream_seed(self.spec.seed, "turns", index))
        for _ in range(self.spec.add):
            other = self.of[draw.randrange(len(self.of))]
            most = self.spec.max_media
            if most is not None and media + len(other.media) > most:
                break
            if other.messages[0].role != "system":
                messages += other.messages
                media += len(other.media)
        return Sample(id=first.id, messages=tuple(messages), meta=first.meta)
