"""Beam search: not a matter of the engine's steps, but of transformers' `generate`.

A search runs in the engine's thread; between two of its steps all other requests have theirs. Its
answer is that of `generate` with the same arguments, which is what it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from retinue.core.errors import EnvError
from retinue.decode.loop import Row, advance
from retinue.decode.sampling import Sampler
from retinue.decode.stream import Detokenizer
from retinue.processor_hf import hf_inputs
from retinue.serve.engine import Engine
from retinue.serve.request import Event, Request

NAME = "generate"
"""What replies call the decoder of such requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """How many beams, and how their scores count length: score / length ** length_penalty."""

    count: int
    length_penalty: float = 1.0


class Turns:
    """Asked by `generate` after each of its steps: others' turn, and whether to go on (B,)."""

    def __init__(self, engine: Engine, adapter: str, others: Callable[[], bool]) -> None:
        self.engine, self.adapter, self.others = engine, adapter, others
        self.given_up = False

    def __call__(self, ids_BT: Tensor, scores: Any, **more: Any) -> Tensor:
        self.given_up = self.given_up or self.others()
        self.engine.adapters.activate(self.adapter)
        return torch.full((len(ids_BT),), self.given_up, device=ids_BT.device)


def answer_ids(
    engine: Engine,
    request: Request,
    beams: Beams,
    *,
    answers: int,
    others: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Ids of the best `answers` of one prompt, each up to and with its end id.

    others: lets other requests have a step; True gives the search up, and there are no answers.
    """
    processor, params = engine.processor, request.params
    items = [
        item if item.pixels else processor.item(picture.media, where=picture.where)
        for item, picture in zip(request.example.items, request.pictures, strict=True)
    ]
    example = replace(request.example, items=items)
    inputs = hf_inputs(processor, processor.collate([example], pad_side="left"))
    inputs = {name: value.to(engine.model.device) for name, value in inputs.items()}
    ends = sorted(engine.ends)
    more: dict[str, Any] = {}
    if params.no_repeat_ngram_size:
        more["no_repeat_ngram_size"] = params.no_repeat_ngram_size
    if params.repetition_penalty != 1.0:
        more["repetition_penalty"] = params.repetition_penalty
    if ends:
        more["pad_token_id"] = processor.tokenizer.pad_id
    engine.adapters.activate(request.adapter)
    turns = Turns(engine, request.adapter, others)
    with torch.inference_mode():
        found = engine.model.generate(
            **inputs,
            do_sample=False,
            num_beams=beams.count,
            num_return_sequences=answers,
            length_penalty=beams.length_penalty,
            max_new_tokens=params.max_new_tokens,
            eos_token_id=ends or None,
            stopping_criteria=StoppingCriteriaList([turns]),
            **more,
        )
    if turns.given_up:
        return []
    prompt = inputs["input_ids"].shape[1]
    rows: list[list[int]] = found[:, prompt:].tolist()
    return [
        row[: next((n + 1 for n, i in enumerate(row) if i in engine.ends), None)] for row in rows
    ]


def beam_events(
    engine: Engine,
    requests: Sequence[Request],
    beams: Beams,
    *,
    others: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Events of the choices of one call, as the engine would tell them; best answer first.

    requests: one prompt, once for every answer that is wanted; others: as in `answer_ids`.
    """
    first = requests[0]
    try:
        found = answer_ids(engine, first, beams, answers=len(requests), others=others)
    except torch.OutOfMemoryError:
        error = EnvError("no memory for so many beams", fix="ask for fewer")
        yield from (Event(id=one.id, finish="error", error=error) for one in requests)
        return
    for request, ids in zip(requests, found, strict=bool(found)):
        params = request.params
        row = Row(
            number=0,
            params=params,
            sampler=Sampler(params, prompt=[]),
            text=Detokenizer(engine.processor, stop=params.stop),
            position=0,
        )
        for number, token in enumerate(ids):
            delta = advance(row, token, engine.ends)
            text, finish = delta.text, delta.finish
            if number == len(ids) - 1 and finish is None:
                text, finish = text + row.text.finish(), "length"
            assert finish != "doubt"
            yield Event(id=request.id, token=token, text=text, finish=finish)
            if finish is not None:
                break
