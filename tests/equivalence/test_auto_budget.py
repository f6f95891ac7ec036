"""The automatic budget asks what fixed budgets would ask: same answers, one pass of the encoder."""

import math

import pytest

from retinue.decode.auto import confidence, ladder, uniform
from retinue.decode.chat import Chat
from retinue.decode.offline import generate
from retinue.decode.sampling import SamplingParams
from retinue.decode.tries import OPENING
from retinue.hub.elastic import make_elastic
from retinue.types import Media, Sample
from tiny import ask, picture, tiny_model

PARAMS = SamplingParams(max_new_tokens=5)
BUDGETS = [1, 4, 16]
SYSTEM = "the circle is red, green or blue " * 3


@pytest.fixture(scope="module", params=["twin", "plain"])
def loaded(request):
    """A model that has an inference twin, and one that has none; a long system prompt."""
    template = {"name": "vicuna_v1", "system": SYSTEM}
    fields = {} if request.param == "twin" else {"hidden_act": "gelu"}
    model, processor = tiny_model(seed=5, template=template, **fields)
    make_elastic(model, processor, scales=BUDGETS)
    return model, processor


@pytest.fixture(scope="module")
def samples():
    rows = [ask(str(n), "what " * (n % 4) + "colour?", picture(n)) for n in range(9)]
    return [*rows, ask("two", "which?", picture(3), picture(4)), ask("none", "hello")]


def told(answers):
    return [(answer.id, answer.tokens, answer.text, answer.finish) for answer in answers]


def fixed(loaded, samples, budget):
    return list(
        generate(*loaded, samples, params=PARAMS, batch_size=4, budget=budget, logprobs=True)
    )


@pytest.mark.parametrize(("threshold", "budget"), [(0.0, 1), (math.inf, 16)])
def test_threshold_of_nothing_is_the_smallest_of_infinity_the_full_budget(
    loaded, samples, threshold, budget
):
    policy = uniform(BUDGETS, threshold)
    found = list(generate(*loaded, samples, params=PARAMS, batch_size=4, budget=policy))
    expected = fixed(loaded, samples, budget)
    assert told(found) == told(expected)
    assert [(a.visual_tokens, a.spent) for a in found] == [(a.visual_tokens,) * 2 for a in expected]


@pytest.mark.parametrize("measure", ["least", "mean", "first"])
def test_every_answer_is_that_of_the_budget_it_stopped_at(loaded, samples, measure):
    runs = {budget: fixed(loaded, samples, budget) for budget in BUDGETS}
    sure = sorted(confidence(answer.logprobs, measure) for answer in runs[1])
    policy = ladder(BUDGETS, [(sure[6] + sure[7]) / 2, (sure[2] + sure[3]) / 2], measure=measure)
    found = list(generate(*loaded, samples, params=PARAMS, batch_size=4, budget=policy))
    stops = set()
    for number, answer in enumerate(found):
        spent = 0
        for rung, budget in enumerate(BUDGETS):
            own = runs[budget][number]
            spent += own.visual_tokens
            if answer.id == "none" or policy.enough(rung, own.logprobs):
                break
        assert told([answer]) == told([own])
        assert (answer.visual_tokens, answer.spent) == (own.visual_tokens, spent)
        assert answer.budget == (None if answer.id == "none" else budget)
        stops.add(answer.budget)
    assert len(stops) >= 3


def test_pictures_are_encoded_once_and_the_opening_is_read_once(loaded, samples, monkeypatch):
    model, processor = loaded
    views, tokens = [], []
    encode, embed = model.encode, model.lm.embed
    monkeypatch.setattr(
        model, "encode", lambda visual: views.append(len(visual.pixels["rgb"])) or encode(visual)
    )
    monkeypatch.setattr(model.lm, "embed", lambda x: tokens.append(tuple(x.shape)) or embed(x))
    policy = uniform(BUDGETS, 1.0)  # never quite certain: every budget is tried
    found = list(generate(*loaded, samples[:9], params=PARAMS, batch_size=4, budget=policy))
    assert {answer.budget for answer in found} == {16}
    assert sum(views) == 9
    opening = [shape for shape in tokens if shape[0] == 1 and shape[1] >= OPENING]
    lengths = [len(processor.example(sample).tokens) for sample in samples[:9]]
    assert len(opening) >= 1
    longest = max(shape[1] for shape in tokens if shape[0] > 1)
    assert longest <= max(lengths) - max(shape[1] for shape in opening)


def test_rows_that_need_penalties_or_draws_are_answered_alike(loaded, samples):
    params = SamplingParams(max_new_tokens=5, repetition_penalty=1.3, temperature=0.7, seed=4)
    policy = ladder(BUDGETS, [2.0, 2.0])
    expected = list(generate(*loaded, samples, params=params, batch_size=4, budget=16))
    assert told(generate(*loaded, samples, params=params, batch_size=4, budget=policy)) == told(
        expected
    )
    climbed = list(
        generate(*loaded, samples, params=params, batch_size=4, budget=uniform(BUDGETS, 1.0))
    )
    assert told(climbed) == told(expected)


def test_chat_answers_as_generate_does_and_says_with_how_many(loaded, samples):
    runs = {budget: fixed(loaded, samples[:9], budget) for budget in BUDGETS}
    sure = sorted(confidence(answer.logprobs, "least") for answer in runs[1])
    policy = uniform(BUDGETS, (sure[4] + sure[5]) / 2)
    expected = list(generate(*loaded, samples[:9], params=PARAMS, budget=policy))
    assert len({answer.budget for answer in expected}) > 1
    for sample, answer in zip(samples[:9], expected, strict=True):
        talk = Chat(*loaded, params=PARAMS, budget=policy)
        question = sample.messages[0].text.strip()
        said = "".join(talk.ask(question, images=[m.source for m in sample.media]))
        assert said.strip() == answer.text
        assert talk.answered_with == answer.budget


def test_a_budget_set_between_questions_counts_for_earlier_pictures(loaded):
    talk = Chat(*loaded, params=PARAMS, budget=16)
    list(talk.ask("what?", images=[picture(1), Media(source=picture(2), budget=4)]))
    talk.budget = 1
    said = "".join(talk.ask("and?"))
    first, answer, second, _ = talk.messages
    assert [media.budget for media in first.media] == [None, 4]
    one = Sample(id="chat", messages=(first, answer, second))
    (direct,) = generate(*loaded, [one], params=PARAMS, budget=1)
    assert said.strip() == direct.text
    assert direct.visual_tokens == 5


def test_a_row_that_cannot_be_read_is_left_out(loaded, samples, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    rows = [samples[0], ask("cut", "hi", tmp_path / "cut.png"), samples[1]]
    seen, steps = [], []
    found = generate(
        *loaded,
        rows,
        params=PARAMS,
        budget=uniform(BUDGETS, 0.5),
        skipped=lambda number, sample, error: seen.append((number, sample.id)),
        progress=steps.append,
    )
    assert [answer.number for answer in found] == [0, 2]
    assert (seen, steps) == ([(1, "cut")], [3])
