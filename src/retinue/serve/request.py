"""What the engine is asked, what it keeps of a request while it runs, and what it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from retinue.serve.prefix import Chain, Run

if TYPE_CHECKING:
    from torch import Tensor

    from retinue.decode.loop import Row
    from retinue.decode.sampling import SamplingParams
    from retinue.serve.guide import Guide
    from retinue.types import Example, Media

Ending = Literal["stop", "length", "error"]
"""Why an answer ended; error: this request alone could not be computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of a prompt. key: a hash of what the encoders would be shown.

    media: where its pixels come from; where: how an error names it.
    """

    key: bytes
    media: Media
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt ready for the engine, made by `retinue.serve.prompt.Prompts`.

    example: its tokens and items (pixels may be absent where the features are known);
    pictures: one per item; top: how many of the likeliest ids each step is to report;
    logprobs: whether the reply shows log-probabilities; guide: the form that the answer must have.
    adapter: the weights that answer, "" for those of the model itself.
    """

    id: str
    example: Example
    pictures: Sequence[Picture]
    params: SamplingParams
    top: int = 0
    logprobs: bool = False
    guide: Guide | None = None
    adapter: str = ""

    @property
    def runs(self) -> list[Run]:
        """Its runs of placeholders, by the pictures they show."""
        found = []
        for span in sorted(self.example.spans, key=lambda span: span.start):
            item = self.example.items[span.item]
            facts = f"|{item.budget}|{item.num_tokens}|{item.grid}".encode()
            key = self.pictures[span.item].key + facts
            found.append(Run(start=span.start, stop=span.start + span.length, key=key))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of one request: a new id, the text that became showable, why it ended.

    logprob: of the id, before temperature and penalties; top: the likeliest ids with theirs;
    token is None where `error` says what went wrong. cached: prompt tokens that
    were not read again.
    """

    id: str
    token: int | None = None
    text: str = ""
    finish: Ending | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    error: Exception | None = None
    cached: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """A request inside the engine.

    tokens: prompt and answer; computed: how many of them have keys and values in `table`'s blocks;
    named: how many blocks of the table can be found by others; words: visual tokens of its items,
    as far as they are needed; state: what a fusion keeps per row; cached: tokens found when
    it left the queue.
    """

    request: Request
    row: Row
    chain: Chain
    tokens: list[int]
    guide: Guide | None = None
    computed: int = 0
    named: int = 0
    table: list[int] = field(default_factory=list)
    words: dict[int, Tensor] = field(default_factory=dict)
    state: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    cached: int = 0
    preempted: int = 0
    arrived: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.example.tokens)

    @property
    def left(self) -> int:
        """Tokens without keys and values; 1 while it decodes."""
        return len(self.tokens) - self.computed

    @property
    def most(self) -> int:
        """Tokens it may come to have, the last of which is never computed."""
        return self.prompt + self.request.params.max_new_tokens
