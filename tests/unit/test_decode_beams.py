"""Beams: batches answer as `generate` does row by row; stop strings, draws, and what is refused."""

from __future__ import annotations

import pytest
import torch

from retinue.core.errors import RequestError
from retinue.decode.auto import AutoBudget
from retinue.decode.offline import generate
from retinue.decode.prompt import end_ids
from retinue.decode.sampling import SamplingParams
from retinue.processor_hf import hf_inputs
from tiny import ask, picture, tiny_model

ROWS = [
    ask("a", "what colour is the circle?", picture(1)),
    ask("b", "how many?"),
    ask("c", "one two", picture(2), picture(3)),
]


def alone(model, processor, sample, **options):
    """`generate` of one prompt, its answer's ids up to the end id."""
    inputs = hf_inputs(processor, processor.batch([sample], pad_side="left"))
    ends = end_ids(processor)
    with torch.inference_mode():
        out = model.generate(
            **inputs, do_sample=False, eos_token_id=ends,
            pad_token_id=processor.tokenizer.pad_id, **options,
        )  # fmt: skip
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids[: next((n + 1 for n, id in enumerate(ids) if id in ends), None)]


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
def test_a_batch_answers_as_generate_row_by_row(penalty: float) -> None:
    model, processor = tiny_model(seed=4)
    params = SamplingParams(
        max_new_tokens=6, num_beams=3, length_penalty=penalty, no_repeat_ngram_size=2
    )
    found = list(generate(model, processor, ROWS, params=params, batch_size=3))
    assert [one.number for one in found] == [0, 1, 2]
    for sample, answer in zip(ROWS, found, strict=True):
        wanted = alone(
            model, processor, sample, max_new_tokens=6, num_beams=3, length_penalty=penalty,
            no_repeat_ngram_size=2,
        )  # fmt: skip
        assert answer.tokens == wanted
        text = processor.decode(wanted, skip_special=True).strip()
        assert answer.text == text


def test_stop_strings_cut_what_beams_found() -> None:
    model, processor = tiny_model(seed=4)
    params = SamplingParams(max_new_tokens=6, num_beams=2)
    (plain,) = generate(model, processor, ROWS[:1], params=params)
    letter = plain.text[1]
    (cut,) = generate(
        model, processor, ROWS[:1], params=params.model_copy(update={"stop": (letter,)})
    )
    assert cut.text == plain.text.split(letter)[0].strip()
    assert cut.finish == "stop"


def test_drawn_beams_follow_the_seed_not_the_neighbours() -> None:
    model, processor = tiny_model(seed=4)
    params = SamplingParams(max_new_tokens=6, num_beams=2, temperature=1.5, seed=7)
    before = torch.random.get_rng_state()
    together = [one.tokens for one in generate(model, processor, ROWS, params=params)]
    assert torch.equal(before, torch.random.get_rng_state())
    for sample, tokens in zip(ROWS, together, strict=True):
        (one,) = generate(model, processor, [sample], params=params)
        assert one.tokens == tokens
    others = params.model_copy(update={"seed": 8})
    assert [one.tokens for one in generate(model, processor, ROWS, params=others)] != together


def test_an_automatic_budget_has_no_beams() -> None:
    model, processor = tiny_model()
    policy = AutoBudget.parse(
        {"measure": "least", "rungs": [{"visual_tokens": 4, "threshold": 0.0}]}, where="test"
    )
    with pytest.raises(RequestError, match="automatic budget"):
        next(generate(model, processor, ROWS, params=SamplingParams(num_beams=2), budget=policy))
