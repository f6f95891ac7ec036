"""Many questions through the serving engine: rows join and leave at every step, pictures and
openings that questions share are read once. The answers are those of `decode.offline`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinue.decode.loop import Completion
    from retinue.decode.sampling import SamplingParams
    from retinue.processor import Processor
    from retinue.types import Sample

AHEAD = 4
"""Questions that are prepared for each row: enough that no row waits, few enough to hold."""
LEAST_ROOM = 16384
"""Tokens whose keys and values have room, at least."""


def answers(
    model: Any,
    processor: Processor,
    samples: Iterable[Sample],
    *,
    params: SamplingParams,
    rows: int = 16,
    skipped: Callable[[int, Sample, Exception], None] | None = None,
    budget: int | None = None,
    logprobs: bool = False,
) -> Iterator[Completion]:
    """Answer every sample in order; rows: questions decoded side by side.

    params: for all; each sample draws from a stream of its own, as in decode.offline.generate.
    Raises DataError, MediaError or RequestError for a sample that cannot be used, unless `skipped`
    takes it.
    """
    from retinue.core.errors import ConfigError, DataError, RequestError
    from retinue.core.seed import stream_seed
    from retinue.decode.budget import visual_tokens
    from retinue.decode.loop import Completion
    from retinue.serve.engine import Engine, EngineSpec
    from retinue.serve.prompt import Prompts

    if params.num_beams > 1:
        raise ConfigError("beams in the engine", where="--continuous", fix="leave one of them out")
    text = processor.plan.config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", 0) or 4096)
    spec = EngineSpec(rows=rows, kv_tokens=max(LEAST_ROOM, min(rows * longest, 4 * LEAST_ROOM)))
    engine = Engine(model, processor, spec=spec)
    prompts = Prompts(processor, engine.features)
    numbered = enumerate(samples)
    made: dict[int, Completion | None] = {}
    waiting: dict[str, tuple[Completion, Sample]] = {}
    following, more = 0, True

    def refuse(number: int, sample: Sample, error: Exception) -> None:
        if skipped is None:
            raise error
        skipped(number, sample, error)
        made[number] = None

    while more or waiting:
        while more and len(waiting) < AHEAD * rows:
            number, sample = next(numbered, (-1, None))
            if sample is None:
                more = False
                break
            own = params.model_copy(update={"seed": stream_seed(params.seed, sample.id)})
            named = f"{number}"
            try:
                request = prompts.chat(sample, params=own, budget=budget, logprobs=logprobs)
                engine.check_room(request)
            except (DataError, RequestError) as error:
                refuse(number, sample, error)
                continue
            seen = visual_tokens(request.example)
            answer = Completion(id=sample.id, number=number, budget=budget, visual_tokens=seen)
            answer.spent = seen
            waiting[named] = (answer, sample)
            engine.add(renamed(request, named))
        for event in engine.step() if waiting else ():
            answer, sample = waiting[event.id]
            if event.token is None:
                del waiting[event.id]
                refuse(answer.number, sample, event.error or RequestError("no answer"))
                continue
            answer.tokens.append(event.token)
            answer.text += event.text
            if logprobs and event.logprob is not None:
                answer.logprobs.append(event.logprob)
            if event.finish is not None:
                answer.finish = "stop" if event.finish == "stop" else "length"
                answer.text = answer.text.strip()
                made[answer.number] = answer
                del waiting[event.id]
        while following in made:
            ready = made.pop(following)
            following += 1
            if ready is not None:
                yield ready


def renamed(request: Any, id: str) -> Any:
    """The request under a name of its own: questions may share ids."""
    from dataclasses import replace

    return replace(request, id=id)
