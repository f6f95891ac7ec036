"""Answers ranked by likelihood: shared beginnings give what whole forwards give."""

from dataclasses import replace

import pytest
import torch

from retinue.core.errors import DataError
from retinue.decode.score import CHOICES, Continuations, followers, leaves, option_scores, rank
from retinue.types import Sample
from tiny import ask, picture, tiny_model

NAMES = ("the circle is red", "the circle is green", "the circle", "red", "one two three", "blue")


def whole(model, processor, sample, ids):
    """Log-probability of each id of an answer, from one forward of prompt and answer."""
    example = processor.example(sample)
    tokens = [*example.tokens, *ids]
    longer = processor.collate([replace(example, tokens=tokens, labels=[-100] * len(tokens))])
    with torch.inference_mode():
        logs = model.run(longer).logits[0].float().log_softmax(-1)
    first = len(example.tokens) - 1
    return [logs[first + n, id].item() for n, id in enumerate(ids)]


def given(sample, names):
    return Sample(id=sample.id, messages=sample.messages, meta={CHOICES: names})


SAMPLES = [ask("a", "what colour is the circle?", picture(1)), ask("b", "how many?")]


@pytest.mark.parametrize("norm", ["mean", "sum"])
def test_ranking_equals_whole_forwards(norm):
    model, processor = tiny_model()
    samples = [given(SAMPLES[0], NAMES), given(SAMPLES[1], NAMES[2:4])]
    ids_of = Continuations(processor)
    found = list(rank(model, processor, samples, norm=norm, batch_size=2))
    assert [one.number for one in found] == [0, 1]
    for sample, one in zip(samples, found, strict=True):
        for name, score in zip(one.choices, one.scores, strict=True):
            each = whole(model, processor, sample, ids_of(name))
            wanted = sum(each) / (len(each) if norm == "mean" else 1)
            assert score == pytest.approx(wanted, abs=1e-4)
        best = max(zip(one.scores, one.choices, strict=True))[1]
        assert one.text == best == next(iter(one.ranking()))
        assert len(one.ranking(most=1)) == 1


def test_many_paths_are_read_in_pieces(monkeypatch):
    from retinue.decode import score

    model, processor = tiny_model()
    samples = [given(one, NAMES) for one in SAMPLES]
    straight = [one.scores for one in rank(model, processor, samples)]
    monkeypatch.setattr(score, "READ", 4)
    for made, wanted in zip(rank(model, processor, samples), straight, strict=True):
        assert made.scores == pytest.approx(wanted, abs=1e-5)


def test_the_prompt_and_common_beginnings_are_read_once(monkeypatch):
    model, processor = tiny_model()
    from retinue.decode import score

    seen = []

    class Counts:
        device = torch.device("cpu")
        new_cache = model.new_cache

        def run(self, batch, **options):
            seen.append(batch.tokens.shape)
            return model.run(batch, **options)

    monkeypatch.setattr(score, "inference_twin", lambda model: model)
    (prompt,) = [processor.example(SAMPLES[1]).tokens]
    options = [[[5, 6, 7], [5, 6, 8], [5, 9], [4]]]
    batch = processor.batch([SAMPLES[1]], pad_side="left")
    option_scores(Counts(), batch, options)
    assert [tuple(shape) for shape in seen] == [(1, len(prompt)), (1, 2)]
    wanted = followers(options[0])
    assert wanted == {(): [5, 4], (5,): [6, 9], (5, 6): [7, 8]}
    assert leaves(wanted) == [(5, 6)]


def test_a_sample_without_answers_is_named():
    model, processor = tiny_model()
    with pytest.raises(DataError, match="no answers to rank"):
        list(rank(model, processor, [SAMPLES[0]]))
    told = []
    samples = [SAMPLES[0], given(SAMPLES[1], ("red",))]
    found = list(rank(model, processor, samples, skipped=lambda n, s, e: told.append((n, s.id))))
    assert [one.id for one in found] == ["b"]
    assert told == [(0, "a")]


def test_answers_as_they_follow_the_prompt():
    _, processor = tiny_model()
    ids_of = Continuations(processor)
    for name in NAMES:
        assert processor.decode(ids_of(name)).strip() == name
    assert ids_of("red") is ids_of("red")
