"""Requests for tests of the engine: what the decode loop answers, and a run under mixed load."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from retinue.decode.budget import with_budget
from retinue.decode.loop import Completion, complete
from retinue.decode.prompt import end_ids, with_stops, within_room
from retinue.decode.sampling import SamplingParams
from retinue.model.build import build_model
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor
from retinue.serve.engine import Engine
from retinue.serve.prompt import Prompts
from retinue.types import Sample
from tiny import tiny_model


def fused(fusion: dict[str, Any], *, seed: int = 3, **text: Any) -> tuple[Any, Processor]:
    """The tiny model with another fusion, whose new parts do something."""
    model, processor = tiny_model(seed=seed, **text)
    config = RetinueConfig(
        model.config.text_config, model.config.encoders, {**model.config.spec, "fusion": fusion}
    )
    made = build_model(config, seed=seed).eval()
    for name, parameter in made.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            parameter.data.fill_(0.7)
    return made, Processor(Plan(config), tokenizer=processor.tokenizer, spec=processor.spec)


def reference(
    model: Any,
    processor: Processor,
    sample: Sample,
    *,
    params: SamplingParams,
    budget: int | None = None,
) -> Completion:
    """What the plain loop answers, with log-probabilities."""
    example = processor.example(with_budget(sample, budget))
    return complete(
        model,
        processor.collate([example], pad_side="left"),
        params=within_room(with_stops(params, processor), processor, example),
        decoder=processor,
        eos_ids=end_ids(processor),
        logprobs=True,
    )[0]


def serve(
    engine: Engine,
    asked: Sequence[tuple[Sample, SamplingParams, int | None]],
    *,
    seed: int | None = None,
) -> dict[str, Completion]:
    """All answers; with a seed requests arrive at random, else all at once. Checks every step."""
    prompts, left = Prompts(engine.processor, engine.features), list(asked)
    chance = random.Random(seed)
    found = {sample.id: Completion(id=sample.id, finish="length") for sample, *_ in asked}
    while left or engine.busy:
        while left and (seed is None or not engine.busy or chance.random() < 0.5):
            sample, params, budget = left.pop(0)
            engine.add(prompts.chat(sample, params=params, budget=budget))
        for event in engine.step():
            assert event.error is None, event.error
            assert event.token is not None
            assert event.logprob is not None
            answer = found[event.id]
            answer.tokens.append(event.token)
            answer.logprobs.append(event.logprob)
            answer.text += event.text
            if event.finish is not None:
                assert event.finish != "error"
                answer.finish = event.finish
        engine.check_integrity()
    for answer in found.values():
        answer.text = answer.text.strip()
    return found
