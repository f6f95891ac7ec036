"""Several tries at an answer with growing budgets: what they share is computed once.

Pictures pass the encoders once, at full length; every try pools them anew. The ids before the first
picture, where all prompts of a batch begin alike, are read once: their keys and values are kept.

Legend: N views.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from retinue.core.errors import DataError, RequestError
from retinue.decode.auto import AutoBudget
from retinue.decode.budget import at_budget, visual_tokens, with_budget
from retinue.decode.loop import Completion, Delta, Opening, Runner, complete, select, stream
from retinue.decode.prompt import device_of, end_ids, within_room
from retinue.decode.sampling import SamplingParams
from retinue.processor import Processor
from retinue.types import Batch, Cache, Example, Features, Sample, Span

OPENING = 16
"""Shortest opening worth keeping: below, repeating its keys costs what reading it does."""
REACH = 8
"""Longest rest of a prompt, in openings, that gains: attention over a cache costs a mask (measured
on a CPU: prefill 2.5 times faster with 1 visual token, 1.2 with 144, 0.9 with 576)."""
STEADY = ("default", "linear", "llama3", "yarn")
"""Rope types under which keys do not depend on what follows."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One prompt through its tries.

    base: its example at the first budget; free: per picture, whether its budget may change; asked:
    the parameters before room was made; example, params: of the present try; larger: of the next;
    features: of all its views, once known; spent: visual tokens read so far; budget: the last one.
    """

    base: Example
    free: list[bool]
    asked: SamplingParams
    params: SamplingParams
    example: Example
    larger: tuple[Example, SamplingParams] | None = None
    features: Features | None = None
    spent: int = 0
    budget: int | None = None

    @property
    def open(self) -> bool:
        """Whether another budget changes anything."""
        return any(self.free)


def attempt(
    processor: Processor, sample: Sample, *, budget: int, params: SamplingParams
) -> Attempt:
    """A prompt ready for its first try. Raises DataError, RequestError."""
    sample = processor.unfold(sample)
    free = [media.budget is None for media in sample.media]
    example = processor.example(with_budget(sample, budget))
    own = within_room(params, processor, example)
    return Attempt(base=example, free=free, asked=params, params=own, example=example)


class Tries:
    """Batches for one budget after another, over one model."""

    def __init__(self, runner: Runner, processor: Processor, *, policy: AutoBudget) -> None:
        self.runner, self.processor, self.policy = runner, processor, policy
        self.owner: Any = getattr(runner, "model", runner)
        self.kept: Opening | None = None

    def last(self, attempt: Attempt, rung: int) -> bool:
        """Whether there is no further try after this one, or none that has room."""
        if not attempt.open or rung == len(self.policy.rungs) - 1:
            return True
        if attempt.larger is None:
            attempt.larger = self.grown(attempt, rung + 1)
        return attempt.larger is None

    def grown(self, attempt: Attempt, rung: int) -> tuple[Example, SamplingParams] | None:
        """A prompt at the budget of a rung, None where it then leaves no room or loses pictures."""
        budget = self.policy.rungs[rung].visual_tokens
        try:
            example = at_budget(self.processor, attempt.base, budget=budget, free=attempt.free)
            params = within_room(attempt.asked, self.processor, example)
        except (DataError, RequestError):
            return None
        return (example, params) if len(example.spans) == len(attempt.base.spans) else None

    def climb(self, attempt: Attempt) -> None:
        """Bring a prompt to its next rung, after `last` said that there is one."""
        assert attempt.larger is not None
        (attempt.example, attempt.params), attempt.larger = attempt.larger, None

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """One prompt's answer as it comes, that of its last try; others are shown once taken."""
        for rung in range(len(self.policy.rungs)):
            batch, opening = self.batch([attempt])
            last = self.last(attempt, rung)
            deltas = stream(
                self.runner,
                batch,
                params=attempt.params,
                decoder=self.processor,
                eos_ids=end_ids(self.processor),
                logprobs=not last,
                doubt=None if last else partial(self.policy.hopeless, rung),
                opening=opening,
            )
            attempt.budget = self.policy.rungs[rung].visual_tokens
            if last:
                yield from deltas
                return
            held = list(deltas)
            if self.policy.enough(rung, [d.logprob for d in held if d.logprob is not None]):
                yield from held
                return
            self.climb(attempt)

    def complete(
        self, attempts: Sequence[Attempt], rung: int, *, last: bool
    ) -> list[Completion | None]:
        """Ask a batch at a rung; None for those to be asked again, which have climbed."""
        batch, opening = self.batch(attempts)
        answers = complete(
            self.runner,
            batch,
            params=[attempt.params for attempt in attempts],
            decoder=self.processor,
            eos_ids=end_ids(self.processor),
            logprobs=True,
            doubt=None if last else partial(self.policy.hopeless, rung),
            opening=opening,
        )
        found: list[Completion | None] = []
        for attempt, answer in zip(attempts, answers, strict=True):
            if last or self.policy.enough(rung, answer.logprobs):
                answer.budget = self.policy.rungs[rung].visual_tokens if attempt.open else None
                answer.visual_tokens = visual_tokens(attempt.example)
                answer.spent = attempt.spent
                attempt.features = None
                found.append(answer)
            else:
                self.climb(attempt)
                found.append(None)
        return found

    @torch.inference_mode()
    def batch(self, attempts: Sequence[Attempt]) -> tuple[Batch, Opening | None]:
        """The prompts as they stand, their pictures encoded, without what they all begin with."""
        examples = [attempt.example for attempt in attempts]
        opening = self.opening(attempts)
        if opening is not None:
            examples = [after(example, len(opening.tokens)) for example in examples]
        batch = self.processor.collate(examples, pad_side="left").to(device_of(self.runner))
        for attempt in attempts:
            attempt.spent += visual_tokens(attempt.example)
        if batch.visual is None or not hasattr(self.owner, "connector"):
            return batch, opening
        with_pictures = [attempt for attempt in attempts if attempt.example.spans]
        if any(attempt.features is None for attempt in with_pictures):
            self.encode(batch, with_pictures)
        held = [attempt.features for attempt in with_pictures if attempt.features is not None]
        features = replace(held[0], x_NLD=torch.cat([one.x_NLD for one in held]))
        return replace(batch, visual=replace(batch.visual, features=features)), opening

    def encode(self, batch: Batch, attempts: Sequence[Attempt]) -> None:
        """Fill in `features`; afterwards the pixels are let go."""
        visual = batch.visual
        assert visual is not None
        features = self.owner.connector.encode(self.owner.encode(visual))
        views = [
            sum(one.example.items[span.item].grid.num_views for span in one.example.spans)
            for one in attempts
        ]
        for one, x_NLD in zip(attempts, features.x_NLD.split(views), strict=True):
            one.features = replace(features, x_NLD=x_NLD)
            one.base = replace(one.base, items=[replace(i, pixels={}) for i in one.base.items])

    # ------------------------------------------------------------------ the opening

    def opening(self, attempts: Sequence[Attempt]) -> Opening | None:
        """Keys and values of what all prompts begin with, None where that does not pay."""
        if len(self.policy.rungs) == 1 or not steady(self.owner):
            return None
        if not all(one.params.plain and one.example.spans for one in attempts):
            return None
        tokens = common([before_pictures(one.example) for one in attempts])
        rest = max(len(one.example.tokens) for one in attempts) - len(tokens)
        if len(tokens) < OPENING or rest > REACH * len(tokens):
            return None
        if self.kept is None or self.kept.tokens != tokens:
            self.kept = self.read(tokens)
        return self.kept

    def read(self, tokens: list[int]) -> Opening:
        example = Example(id="opening", tokens=tokens, labels=tokens)
        batch = self.processor.collate([example]).to(device_of(self.runner))
        cache = self.runner.new_cache()
        self.runner.run(batch, cache=cache, keep="last")

        def copy(rows: int) -> Cache:
            made = deepcopy(cache)
            select(made, torch.zeros(rows, dtype=torch.long, device=batch.tokens.device))
            return made

        return Opening(tokens=tokens, copy=copy)


def steady(owner: Any) -> bool:
    """Whether cached keys stay right whatever follows, and pictures live in the sequence alone."""
    plan = getattr(owner, "plan", None)
    if plan is None or plan.spec.fusion.kind != "splice":
        return False
    rope = getattr(plan.config.get_text_config(), "rope_parameters", None) or {}
    return rope.get("rope_type", "default") in STEADY


def before_pictures(example: Example) -> list[int]:
    """Tokens before the first placeholder, leaving at least one after them."""
    return example.tokens[: min(span.start for span in example.spans)]


def common(rows: Sequence[list[int]]) -> list[int]:
    """What all rows begin with."""
    first, last = min(rows), max(rows)
    for place, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return first[:place]
    return first[: min(len(first), len(last))]


def after(example: Example, count: int) -> Example:
    """The example without its first tokens; positions go on from them."""
    return replace(
        example,
        tokens=example.tokens[count:],
        labels=example.labels[count:],
        spans=[
            Span(start=span.start - count, length=span.length, item=span.item)
            for span in example.spans
        ],
        positions=list(range(count, len(example.tokens))),
    )
