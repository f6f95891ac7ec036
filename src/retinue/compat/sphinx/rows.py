"""Decoding as the original does it: rows begin together on the left, longer prompts force words.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.types import IGNORE, Batch, Item


@dataclass(slots=True, kw_only=True)
class Rows:
    """A left-aligned batch of texts; every row begins with bos, its picture right after it.

    prompts: ids of each row, bos first; items: a picture of each row, or none at all; limit: length
    of a row in text tokens; sequences: ids that end an answer; eos: the id that does.
    """

    model: Retinue
    processor: Processor
    prompts: Sequence[Sequence[int]]
    items: Sequence[Item]
    limit: int
    temperature: float
    top_p: float
    eos: int
    sequences: Sequence[Sequence[int]] = ()
    out: list[list[int]] = field(default_factory=list)
    ends: list[int | None] = field(default_factory=list)

    @property
    def shown(self) -> int:
        """Visual tokens of a row."""
        return self.items[0].num_tokens if self.items else 0

    @torch.inference_mode()
    def run(self) -> Iterator[int]:
        """Yields the length reached after each step; `out` and `ends` grow on the way.

        ends: where each row's answer stops, None as long as it does not. Draws come from torch's
        global generator, one for every row at every step, as the original's.
        """
        self.out = [list(prompt) for prompt in self.prompts]
        self.ends = [None] * len(self.out)
        cache = self.model.new_cache()
        length = min(map(len, self.prompts))
        batch = first_batch(self.processor, [row[:length] for row in self.prompts], self.items)
        while length < self.limit:
            batch = batch.to(next(self.model.lm.parameters()).device)
            scores_BV = self.model.run(batch, cache=cache, keep="last").logits
            assert scores_BV is not None
            for place, token in enumerate(choose(scores_BV.float(), self.temperature, self.top_p)):
                self._join(place, token, length)
            length += 1
            yield length
            if None not in self.ends:
                return
            batch = self._next(length)

    def _join(self, place: int, token: int, at: int) -> None:
        row = self.out[place]
        if at < len(self.prompts[place]):
            return  # the prompt says what stands here
        row.append(token)
        if self.ends[place] is not None:
            return
        if token == self.eos:
            self.ends[place] = at
        for ids in self.sequences:
            if ids and row[-len(ids) :] == list(ids):
                self.ends[place] = at + 1 - len(ids)

    def _next(self, length: int) -> Batch:
        tokens = torch.tensor([[row[length - 1]] for row in self.out])
        return Batch(
            ids=[str(place) for place in range(len(self.out))],
            tokens=tokens,
            positions=torch.full_like(tokens, length - 1 + self.shown),
            segments=torch.ones_like(tokens),
        )

    def answers(self) -> list[list[int]]:
        """The ids after each prompt, up to where its answer stops."""
        return [
            row[len(prompt) : end]
            for row, prompt, end in zip(self.out, self.prompts, self.ends, strict=True)
        ]


def first_batch(
    processor: Processor, rows: Sequence[Sequence[int]], items: Sequence[Item]
) -> Batch:
    """Rows of ids with their pictures after bos, padded on the right."""
    examples = []
    for place, row in enumerate(rows):
        ids, places = list(row), []
        if items:
            ids, places = [row[0], processor.image_id, *row[1:]], [(1, 0)]
        own = [items[place]] if items else []
        examples.append(processor.expand(str(place), ids, [IGNORE] * len(ids), places, own))
    return processor.collate(examples)


def choose(scores_BV: Tensor, temperature: float, top_p: float) -> list[int]:
    """The next id of every row: the likeliest, or one draw from the most likely top_p."""
    if temperature <= 0:
        likeliest: list[int] = scores_BV.argmax(-1).tolist()
        return likeliest
    chances_BV = (scores_BV / temperature).softmax(-1)
    sorted_BV, order_BV = chances_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill(before_BV > top_p, 0.0)
    sorted_BV = sorted_BV / sorted_BV.sum(-1, keepdim=True)
    drawn_B1 = torch.multinomial(sorted_BV, num_samples=1)
    found: list[int] = order_BV.gather(-1, drawn_B1)[:, 0].tolist()
    return found
