"""Our loop and transformers' `generate` on the same model say the same."""

from itertools import pairwise

import pytest
import torch

from retinue.decode.loop import complete
from retinue.decode.sampling import Sampler, SamplingParams, filter_logits
from tiny import ask, picture, tiny_model

STEPS = 24


@pytest.fixture(scope="module")
def loaded():
    """`<image>` is in the vocabulary: transformers' penalties index logits by prompt ids."""
    return tiny_model(image_in_vocab=True, seed=3)


def samples():
    return [
        ask("a", "what colour is the circle?", picture(1)),
        ask("b", "how many?"),
        ask("c", "how many shapes are there?", picture(2), picture(5)),
        ask("d", "one two three one two three"),
    ]


def ours(loaded, chosen, *, ends=None, **params):
    model, processor = loaded
    return complete(
        model,
        processor(chosen, pad_side="left"),
        params=SamplingParams(max_new_tokens=STEPS, **params),
        decoder=processor,
        eos_ids=ends or processor.tokenizer.eos_ids,
    )


def theirs(loaded, chosen, *, ends=None, **keywords):
    """Generated ids per row up to and including the end id."""
    model, processor = loaded
    prompts = [processor.template.text(sample.messages, reply=True) for sample in chosen]
    images = [[media.source for media in sample.media] for sample in chosen]
    inputs = processor(text=prompts, images=images)
    wanted = processor(chosen, pad_side="left").tokens
    assert torch.equal(inputs["input_ids"], wanted)
    eos = ends or processor.tokenizer.eos_ids
    with torch.no_grad():
        out = model.generate(
            **inputs,
            max_new_tokens=STEPS,
            eos_token_id=eos,
            pad_token_id=processor.tokenizer.pad_id,
            **{"do_sample": False, **keywords},
        )
    rows = out[:, wanted.shape[1] :].tolist()
    ends = [next((n + 1 for n, i in enumerate(row) if i in eos), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize(
    ("params", "keywords"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        (
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
        ),
    ],
    ids=str,
)
def test_greedy_ids_are_equal(loaded, params, keywords):
    found = [answer.tokens for answer in ours(loaded, samples(), **params)]
    assert found == theirs(loaded, samples(), **keywords)
    assert len({tuple(row) for row in found}) == len(found)


def test_greedy_ids_are_equal_where_rows_end_early(loaded):
    """An id that the model says in the middle of one answer is made an end id."""
    free = ours(loaded, samples())
    ends = [free[0].tokens[5]]
    found = ours(loaded, samples(), ends=ends)
    assert found[0].finish == "stop"
    assert found[0].tokens == free[0].tokens[: free[0].tokens.index(ends[0]) + 1]
    assert [answer.tokens for answer in found] == theirs(loaded, samples(), ends=ends)


def test_sampling_draws_from_transformers_distribution(loaded):
    """Step by step along a sampled answer: the scores we draw from are the processed scores."""
    model, processor = loaded
    fields = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
    chosen = samples()[:1]
    prompt = processor(chosen).tokens
    text = processor.template.text(chosen[0].messages, reply=True)
    inputs = processor(text=text, images=chosen[0].media[0].source)
    torch.manual_seed(0)
    with torch.no_grad():
        out = model.generate(
            **inputs,
            **fields,
            do_sample=True,
            repetition_penalty=1.2,
            max_new_tokens=8,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    params = SamplingParams(repetition_penalty=1.2, **fields)
    drawn = out.sequences[0, prompt.shape[1] :].tolist()
    for step, (raw, scores) in enumerate(zip(out.logits, out.scores, strict=True)):
        sampler = Sampler(params, prompt=[*prompt[0].tolist(), *drawn[:step]])
        seen = []
        sampler.draw = lambda scores_V, seen=seen: seen.append(scores_V) or 0
        sampler.choose(raw[0])
        assert torch.equal(torch.isinf(seen[0]), torch.isinf(scores[0]))
        assert torch.equal(seen[0].softmax(-1), scores[0].softmax(-1))
    assert filter_logits(raw[0], params).isinf().any()


def test_beams_run_through_transformers(loaded):
    """Three beams with an n-gram ban find an answer at least as likely as the greedy one."""
    chosen = samples()[:1]
    beams = theirs(loaded, chosen, num_beams=3, no_repeat_ngram_size=2, length_penalty=0.0)[0]
    greedy = ours(loaded, chosen, no_repeat_ngram_size=2)[0].tokens
    pairs = list(pairwise(beams))
    assert len(set(pairs)) == len(pairs)
    assert likelihood(loaded, chosen, beams) >= likelihood(loaded, chosen, greedy) - 1e-4
    wide = theirs(loaded, samples(), num_beams=3, no_repeat_ngram_size=2, length_penalty=0.0)
    assert wide[0] == beams


def likelihood(loaded, chosen, answer):
    """Sum of log-probabilities of an answer, without a cache."""
    model, processor = loaded
    example = processor.example(chosen[0])
    tokens = [*example.tokens, *answer]
    longer = type(example)(
        id=example.id,
        tokens=tokens,
        labels=[-100] * len(tokens),
        spans=example.spans,
        items=example.items,
    )
    with torch.no_grad():
        logits = model.run(processor.collate([longer])).logits[0]
    scores = logits.log_softmax(-1)
    places = range(len(example.tokens) - 1, len(tokens) - 1)
    return sum(float(scores[place, token]) for place, token in zip(places, answer, strict=True))
