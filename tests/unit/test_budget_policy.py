"""The automatic budget's rules, its file, and what requests may ask for."""

import json
import math

import pytest

from retinue.core.errors import ConfigError, RequestError
from retinue.decode.auto import (
    FILE,
    AutoBudget,
    confidence,
    ladder,
    number_or_path,
    policy_for,
    read_policy,
    uniform,
)
from retinue.decode.budget import at_budget, budget_of, with_budget
from retinue.decode.prompt import user_message
from retinue.decode.sampling import SamplingParams
from retinue.decode.tries import Tries, attempt
from retinue.hub.elastic import make_elastic
from retinue.types import Media, Message, Sample, Text
from tiny import ask, picture, tiny_model


@pytest.fixture(scope="module")
def loaded():
    model, processor = tiny_model(seed=3, max_position_embeddings=120)
    make_elastic(model, processor, scales=[1, 4, 16])
    return model, processor


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def test_confidence_is_least_mean_or_first():
    answer = logs(0.9, 0.4, 0.8)
    assert confidence(answer, "least") == pytest.approx(0.4)
    assert confidence(answer, "first") == pytest.approx(0.9)
    assert confidence(answer, "mean") == pytest.approx((0.9 * 0.4 * 0.8) ** (1 / 3))
    assert confidence([], "mean") == 0


def test_thresholds_of_nothing_and_of_infinity():
    assert uniform([1, 4, 16], 0).budgets == [1]
    assert uniform([1, 4, 16], math.inf).budgets == [16]
    assert uniform([1, 4, 16], 1.5).budgets == [16]
    assert uniform([1, 4, 16], 0.5).budgets == [1, 4, 16]
    assert ladder([1, 4, 16], [2.0, 0.0]).budgets == [4]
    with pytest.raises(ConfigError, match="ascend"):
        AutoBudget.parse({"rungs": [{"visual_tokens": 4}, {"visual_tokens": 1}]})


def test_an_answer_is_taken_or_given_up():
    policy = ladder([1, 4, 16], [0.6, 0.3])
    assert policy.enough(0, logs(0.7, 0.65))
    assert not policy.enough(0, logs(0.7, 0.5))
    assert policy.hopeless(0, logs(0.5))
    assert not policy.hopeless(0, logs(0.9))
    assert not policy.hopeless(1, logs(0.5))
    assert policy.enough(2, logs(0.01))
    assert not policy.hopeless(2, logs(0.01))
    mean = ladder([1, 4], [0.6], measure="mean")
    assert not mean.hopeless(0, logs(0.1))  # what follows may make up for it


def test_where_a_policy_comes_from(loaded, tmp_path):
    plan = loaded[1].plan
    assert policy_for(plan) == uniform([1, 4, 16], 0.9)
    assert policy_for(plan, threshold="0.5", folder=tmp_path) == uniform([1, 4, 16], 0.5)
    kept = ladder([1, 16], [0.7], measure="first")
    (tmp_path / FILE).write_text(json.dumps(kept.model_dump(mode="json")), "utf-8")
    assert policy_for(plan, folder=tmp_path) == kept
    assert policy_for(plan, threshold=str(tmp_path / FILE)) == kept
    assert policy_for(plan, threshold=math.inf, folder=tmp_path).budgets == [16]
    assert number_or_path("inf") == math.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no readable policy"),
        ("[1]", "'rungs'"),
        ('{"rungs": []}', "rungs"),
        ('{"rungs": [{"visual_token": 1}]}', "did you mean 'visual_tokens'"),
    ],
)
def test_a_wrong_policy_file_is_named(tmp_path, text, says):
    (tmp_path / "p.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        read_policy(tmp_path / "p.json")
    assert "p.json" in str(caught.value)


def test_budgets_that_requests_ask_for(loaded):
    plan = loaded[1].plan
    assert budget_of(plan, None) is None
    assert budget_of(plan, "4") == budget_of(plan, 4) == 4
    assert isinstance(budget_of(plan, "auto"), AutoBudget)
    with pytest.raises(ConfigError, match="nearest is 4"):
        budget_of(plan, 5)
    with pytest.raises(ConfigError, match="a number or auto; this model has 1, 4, 16"):
        budget_of(plan, "many")
    with pytest.raises(ConfigError, match="no threshold"):
        budget_of(plan, "auto", threshold="-1")
    with pytest.raises(ConfigError, match="nearest"):
        budget_of(plan, ladder([3, 16], [0.5]))


def test_a_model_without_choice_says_so():
    _, processor = tiny_model(seed=3)
    assert budget_of(processor.plan, 16) == 16  # what it has anyway
    for asked in (4, "auto", uniform([1, 4], 0.5)):
        with pytest.raises(ConfigError, match="always has 16 a view") as caught:
            budget_of(processor.plan, asked)
        assert "kind: elastic" in str(caught.value)


def test_pictures_keep_a_budget_of_their_own(loaded):
    _, processor = loaded
    one, two = Media(source=picture(1), budget=1), Media(source=picture(2))
    message = Message(role="user", parts=(one, two, Text(text="\nwhat?")))
    sample = Sample(id="a", messages=(message,))
    assert [m.budget for m in with_budget(sample, 4).media] == [1, 4]
    assert with_budget(sample, None) is sample
    example = processor.example(with_budget(sample, 1))
    again = at_budget(processor, example, budget=16, free=[False, True])
    direct = processor.example(with_budget(sample, 16))
    assert (again.tokens, again.labels, again.spans) == (direct.tokens, direct.labels, direct.spans)
    assert [item.num_tokens for item in again.items] == [1, 16]
    given = user_message("x", [one, "b.png"], budget=4)
    assert [media.budget for media in given.media] == [1, 4]


def test_a_rung_without_room_is_not_tried(loaded):
    model, processor = loaded
    tries = Tries(model, processor, policy=uniform([1, 4, 16], 1.0))
    params = SamplingParams(max_new_tokens=4)
    room, words = 120, 1
    while room >= 15:  # until the question fits with 4 visual tokens and not with 16
        long = ask("a", "word " * words, picture(1))
        one = attempt(processor, long, budget=1, params=params)
        room, words = 120 - len(one.example.tokens), words + 1
    assert room > 3
    assert not tries.last(one, 0)
    tries.climb(one)
    assert len(one.example.tokens) == len(one.base.tokens) + 3
    assert tries.last(one, 1)
    with pytest.raises(RequestError, match="positions"):
        attempt(processor, long, budget=16, params=SamplingParams())
