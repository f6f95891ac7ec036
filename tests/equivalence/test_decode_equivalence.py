"""Batch = single, cached = uncached, padding is irrelevant: ids equal in fp32."""

import pytest
import torch

from retinue.decode.loop import complete, stream
from retinue.decode.offline import generate
from retinue.decode.sampling import Sampler, SamplingParams
from retinue.types import IGNORE, Example
from tiny import ask, picture, tiny_model

STEPS = 16
KINDS = [
    SamplingParams(max_new_tokens=STEPS),
    SamplingParams(max_new_tokens=STEPS, temperature=1.2, top_p=0.95, seed=4),
    SamplingParams(max_new_tokens=STEPS, repetition_penalty=1.3, no_repeat_ngram_size=2),
]


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(seed=3)


def samples():
    return [
        ask("a", "what colour is the circle?", picture(1)),
        ask("b", "how many?"),
        ask("c", "how many shapes are there?", picture(2), picture(5)),
        ask("d", "what?", picture(9)),
        ask("e", "one " * 12),
    ]


def run(loaded, batch, params, *, ends=()):
    model, processor = loaded
    return complete(model, batch, params=params, decoder=processor, eos_ids=list(ends))


@pytest.mark.parametrize("params", KINDS, ids=["greedy", "sampled", "penalties"])
def test_batch_equals_single(loaded, params):
    _, processor = loaded
    together = run(loaded, processor(samples(), pad_side="left"), params)
    alone = [run(loaded, processor([one], pad_side="left"), params)[0] for one in samples()]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in together}) > 1


def test_batch_equals_single_where_rows_leave_at_different_steps(loaded):
    _, processor = loaded
    free = run(loaded, processor(samples(), pad_side="left"), KINDS[0])
    ends = [free[0].tokens[3], free[3].tokens[6]]
    together = run(loaded, processor(samples(), pad_side="left"), KINDS[0], ends=ends)
    alone = [
        run(loaded, processor([one], pad_side="left"), KINDS[0], ends=ends)[0] for one in samples()
    ]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({len(one.tokens) for one in together}) > 1


@pytest.mark.parametrize("params", KINDS, ids=["greedy", "sampled", "penalties"])
def test_cached_equals_uncached(loaded, params):
    """The reference runs the whole sequence anew for every id."""
    model, processor = loaded
    for sample in samples():
        example = processor.example(sample)
        sampler = Sampler(params, prompt=example.tokens)
        tokens = list(example.tokens)
        for _ in range(STEPS):
            whole = Example(
                id="x",
                tokens=tokens,
                labels=[IGNORE] * len(tokens),
                spans=example.spans,
                items=example.items,
            )
            with torch.no_grad():
                tokens.append(sampler.choose(model.run(processor.collate([whole])).logits[0, -1]))
        (cached,) = run(loaded, processor([sample], pad_side="left"), params)
        assert cached.tokens == tokens[len(example.tokens) :]


@pytest.mark.parametrize("multiple", [1, 64, 200])
def test_left_padding_is_irrelevant(loaded, multiple):
    model, processor = loaded
    example = processor.example(samples()[0])
    plain = processor.collate([example])
    padded = processor.collate([example], pad_side="left", multiple=multiple)
    assert (padded.tokens.shape[1] % multiple, plain.tokens.shape[1]) == (0, len(example.tokens))
    found = [run(loaded, batch, KINDS[0])[0].tokens for batch in (plain, padded)]
    assert found[0] == found[1]
    with torch.no_grad():
        logits = [model.run(batch, keep="last").logits for batch in (plain, padded)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)


def test_streamed_text_is_the_whole_text(loaded):
    model, processor = loaded
    batch = processor(samples(), pad_side="left")
    params = SamplingParams(max_new_tokens=STEPS, stop=("an",))
    texts = [""] * len(samples())
    for delta in stream(model, batch, params=params, decoder=processor, eos_ids=[]):
        texts[delta.row] += delta.text
    whole = run(loaded, batch, params)
    assert [text.strip() for text in texts] == [one.text for one in whole]
    for answer in whole:
        if answer.finish == "length":
            assert answer.text == processor.decode(answer.tokens).strip()


@pytest.mark.parametrize("params", KINDS, ids=["greedy", "sampled", "penalties"])
def test_answers_do_not_depend_on_batches_and_windows(loaded, params):
    model, processor = loaded
    many = [ask(f"{n}", f"{'what ' * (n % 5)}{n}?", *[picture(n)] * (n % 3)) for n in range(19)]
    found = {
        size: list(generate(model, processor, iter(many), params=params, batch_size=size))
        for size in (1, 2, 7)
    }
    for size in (2, 7):
        assert [a.tokens for a in found[size]] == [a.tokens for a in found[1]]
    assert [a.number for a in found[2]] == list(range(19))
    assert [a.id for a in found[2]] == [sample.id for sample in many]


def test_samples_of_one_file_draw_from_streams_of_their_own(loaded):
    model, processor = loaded
    same = [ask(name, "what?") for name in "abcd"]
    params = SamplingParams(max_new_tokens=8, temperature=1.5, seed=1)
    tokens = [tuple(a.tokens) for a in generate(model, processor, same, params=params)]
    again = [tuple(a.tokens) for a in generate(model, processor, same[::-1], params=params)]
    assert len(set(tokens)) == 4
    assert again == tokens[::-1]
