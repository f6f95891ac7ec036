"""Many prompts to the end: batches of similar length inside a window, answers in input order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from retinue.core.errors import DataError, RequestError
from retinue.core.seed import stream_seed
from retinue.decode.auto import AutoBudget
from retinue.decode.beams import check_beams, searched
from retinue.decode.budget import Budget, visual_tokens, with_budget
from retinue.decode.loop import Completion, Runner, complete
from retinue.decode.prompt import device_of, end_ids, with_stops, within_room
from retinue.decode.sampling import SamplingParams
from retinue.decode.tries import Attempt, Tries, attempt
from retinue.model.lm.fused import inference_twin
from retinue.processor import Processor
from retinue.types import Example, Sample

WINDOW = 8
"""Batches per window: long enough to sort, short enough to lose little when interrupted."""

Skipped = Callable[[int, Sample, Exception], None]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A sample on its way: its place in the input and its tokens; pictures are not yet decoded."""

    number: int
    sample: Sample
    example: Example
    params: SamplingParams


def generate(
    model: Runner,
    processor: Processor,
    samples: Iterable[Sample],
    *,
    params: SamplingParams | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
    skipped: Skipped | None = None,
    budget: Budget = None,
    logprobs: bool = False,
) -> Iterator[Completion]:
    """Answer every sample; completions come in input order, `number` counting from 0.

    params: for all; each sample draws from a stream of its own, a function of (seed, sample id).
    progress(done): called with the number of samples settled so far. skipped(number, sample,
    error): called for samples that cannot be used, which then have no completion; without it such
    errors are raised (DataError, MediaError, RequestError for a prompt that leaves no room).
    budget: visual tokens per view of pictures that name none; an AutoBudget asks again with more
    where an answer is not sure enough, after all others of the window. logprobs: keep those of the
    answers' tokens, but for beams (`params.num_beams`).
    """
    params = with_stops(params or SamplingParams(), processor)
    check_beams(params, auto=isinstance(budget, AutoBudget))
    model = inference_twin(model) if params.num_beams == 1 else model
    numbered = enumerate(samples)
    settled = 0
    if isinstance(budget, AutoBudget):
        tries = Tries(model, processor, policy=budget)
        while window := list(islice(numbered, batch_size * WINDOW)):
            yield from climb(tries, window, params=params, size=batch_size, skipped=skipped)
            settled += len(window)
            if progress:
                progress(settled)
        return
    while window := list(islice(numbered, batch_size * WINDOW)):
        prompts: list[Prompt] = []
        for number, sample in window:
            try:
                sample = with_budget(sample, budget)
                prompts.append(look(processor, number, sample, params))
            except (DataError, RequestError) as error:
                refuse(skipped, number, sample, error)
        # Longest first: a batch that does not fit into memory fails at once.
        prompts.sort(key=lambda prompt: -len(prompt.example.tokens))
        done: dict[int, Completion | None] = {p.number: None for p in prompts}
        order = sorted(done)
        for start in range(0, len(prompts), batch_size):
            chosen = prompts[start : start + batch_size]
            for prompt, answer in zip(
                chosen, answers(model, processor, chosen, skipped, logprobs), strict=True
            ):
                if answer is not None:
                    answer.budget = budget
                done[prompt.number] = answer
                if answer is None:
                    order.remove(prompt.number)
            while order and (ready := done[order[0]]) is not None:
                del done[order.pop(0)]
                yield ready
            if progress:
                progress(settled + min(start + batch_size, len(prompts)))
        settled += len(window)
        if progress:
            progress(settled)


def look(processor: Processor, number: int, sample: Sample, params: SamplingParams) -> Prompt:
    """Tokens of a sample from text and image headers, and its own parameters."""
    example = processor.example(sample, pixels=False)
    own = within_room(params, processor, example)
    own = own.model_copy(update={"seed": stream_seed(params.seed, sample.id)})
    return Prompt(number=number, sample=sample, example=example, params=own)


def answers(
    model: Runner,
    processor: Processor,
    prompts: Sequence[Prompt],
    skipped: Skipped | None,
    logprobs: bool = False,
) -> list[Completion | None]:
    """Decode one batch; None for those whose pictures turn out to be broken."""
    found: list[Completion | None] = [None] * len(prompts)
    whole: list[tuple[int, Example]] = []
    for place, prompt in enumerate(prompts):
        try:
            whole.append((place, processor.example(prompt.sample)))
        except (DataError, RequestError) as error:
            refuse(skipped, prompt.number, prompt.sample, error)
    if not whole:
        return found
    if prompts[0].params.num_beams > 1:
        kept = [prompts[place].params for place, _ in whole]
        ready = searched(model, processor, [example for _, example in whole], kept)
    else:
        ready = decoded(model, processor, whole, prompts, logprobs)
    for (place, example), completion in zip(whole, ready, strict=True):
        seen = visual_tokens(example)
        number = prompts[place].number
        found[place] = replace(completion, number=number, visual_tokens=seen, spent=seen)
    return found


def decoded(
    model: Runner,
    processor: Processor,
    whole: Sequence[tuple[int, Example]],
    prompts: Sequence[Prompt],
    logprobs: bool,
) -> list[Completion]:
    """Answers id by id; whole: (place among the prompts, example with its pixels)."""
    batch = processor.collate([example for _, example in whole], pad_side="left")
    return complete(
        model,
        batch.to(device_of(model)),
        params=[prompts[place].params for place, _ in whole],
        decoder=processor,
        eos_ids=end_ids(processor),
        logprobs=logprobs,
    )


def climb(
    tries: Tries,
    window: Sequence[tuple[int, Sample]],
    *,
    params: SamplingParams,
    size: int,
    skipped: Skipped | None,
) -> list[Completion]:
    """Answers of a window, in order: all at the first budget, those in doubt at the next, ..."""
    attempts: dict[int, Attempt] = {}
    for number, sample in window:
        try:
            own = params.model_copy(update={"seed": stream_seed(params.seed, sample.id)})
            budget = tries.policy.rungs[0].visual_tokens
            attempts[number] = attempt(tries.processor, sample, budget=budget, params=own)
        except (DataError, RequestError) as error:
            refuse(skipped, number, sample, error)
    done: dict[int, Completion] = {}
    for rung in range(len(tries.policy.rungs)):
        left = [number for number in attempts if number not in done]
        left.sort(key=lambda number: -len(attempts[number].example.tokens))
        groups: dict[bool, list[int]] = {False: [], True: []}
        for number in left:
            groups[tries.last(attempts[number], rung)].append(number)
        for last, some in groups.items():
            for start in range(0, len(some), size):
                chosen = some[start : start + size]
                answered = tries.complete([attempts[n] for n in chosen], rung, last=last)
                for number, answer in zip(chosen, answered, strict=True):
                    if answer is not None:
                        done[number] = replace(answer, number=number)
    return [done[number] for number in sorted(done)]


def refuse(skipped: Skipped | None, number: int, sample: Sample, error: Exception) -> None:
    if skipped is None:
        raise error
    skipped(number, sample, error)
