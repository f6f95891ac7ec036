"""Each filter equals transformers' logits processor; draws are seeded and follow the scores."""

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from retinue.core.errors import ConfigError
from retinue.decode.sampling import (
    Sampler,
    SamplingParams,
    ban_ngrams,
    choose_all,
    filter_logits,
    penalize,
)

V = 50


def logits(seed, scale=3.0):
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * scale


def history(seed, length, of=6):
    return torch.randint(of, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def same(found, wanted):
    assert torch.equal(torch.isinf(found), torch.isinf(wanted))
    kept = ~torch.isinf(wanted)
    assert torch.equal(found[kept], wanted[kept])
    assert kept.any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty(seed, penalty):
    past = history(seed, 9, of=V)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([past]), logits(seed)[None])[0]
    same(penalize(logits(seed), past, penalty), theirs)


def test_repetition_penalty_ignores_placeholders_beyond_the_vocabulary():
    assert torch.equal(penalize(logits(1), [3, V, V + 7, -1], 2.0), penalize(logits(1), [3], 2.0))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 2, 4, 20])
def test_no_repeated_ngrams(seed, size, length):
    past = history(seed, length, of=4)
    ids = torch.tensor([past], dtype=torch.long)
    theirs = NoRepeatNGramLogitsProcessor(size)(ids, logits(seed)[None].clone())[0]
    same(ban_ngrams(logits(seed), past, size), theirs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": V + 1},
        {"top_p": 0.05},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.05, "temperature": 0.6},
        {"top_p": 0.9, "temperature": 2.5},
    ],
    ids=str,
)
def test_filters_in_transformers_order(seed, fields):
    params = SamplingParams.parse({"temperature": 1.0, **fields})
    scores = logits(seed)
    theirs = TemperatureLogitsWarper(params.temperature)(None, scores[None])
    if params.top_k:
        theirs = TopKLogitsWarper(params.top_k)(None, theirs)
    if params.top_p < 1:
        theirs = TopPLogitsWarper(params.top_p)(None, theirs)
    if params.min_p:
        theirs = MinPLogitsWarper(params.min_p)(None, theirs)
    same(filter_logits(scores / params.temperature, params), theirs[0])


def test_ties_at_the_edge_of_top_k_are_all_kept_as_transformers_does():
    scores = torch.tensor([1.0, 2.0, 2.0, 0.0])
    theirs = TopKLogitsWarper(1)(None, scores[None])[0]
    same(filter_logits(scores, SamplingParams(top_k=1)), theirs)


def test_draws_follow_the_distribution():
    scores = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=3), prompt=[])
    counts = torch.bincount(torch.tensor([sampler.draw(scores) for _ in range(4000)]), minlength=4)
    wanted = scores.softmax(-1)
    # Three standard deviations of a share over 4,000 draws are below 0.024.
    assert torch.allclose(counts / 4000, wanted, atol=0.024)
    assert counts[3] == 0


def test_a_seed_gives_the_same_ids_and_another_seed_others():
    def ids(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), prompt=[1])
        return [sampler.choose(logits(n)) for n in range(12)]

    assert ids(5) == ids(5)
    assert ids(5) != ids(6)


def test_rows_of_every_kind_are_chosen_together_as_alone():
    kinds = [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(temperature=1.3, seed=2),
        SamplingParams(no_repeat_ngram_size=1),
    ]
    together = [Sampler(params, prompt=[4, 9]) for params in kinds]
    alone = [Sampler(params, prompt=[4, 9]) for params in kinds]
    for step in range(6):
        rows = torch.stack([logits(10 * step + n) for n in range(len(kinds))])
        found = choose_all(together, rows)
        assert found == [one.choose(row) for one, row in zip(alone, rows, strict=True)]
    assert [one.history for one in together] == [one.history for one in alone]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperatur": 1}, "did you mean 'temperature'"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_wrong_parameters_are_named(fields, says):
    with pytest.raises(ConfigError, match=says):
        SamplingParams.parse(fields)
