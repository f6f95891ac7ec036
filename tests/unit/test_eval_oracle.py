"""Oracle, curve and fitted automatic budget, on rows made by hand."""

import csv
import math
import random

import pytest

from retinue.core.errors import DataError
from retinue.decode.auto import AutoBudget
from retinue.eval.fit_auto import fit_auto
from retinue.eval.oracle import (
    choices,
    compare,
    curve_csv,
    difference_table,
    differences,
    fixed,
    items_csv,
    points,
    table,
)
from retinue.eval.plot import draw_curve

SCORES = {  # four questions: always right, from 4 on, only with 1, never
    1: [1, 0, 1, 0],
    4: [1, 1, 0, 0],
    16: [1, 1, 0, 0],
}


def row(id, score, tokens, *, spent=None, sure=0.5, budget=None):
    return {
        "id": id,
        "task": "odd" if isinstance(id, int) and id % 2 else "even",
        "scorer": "exact",
        "score": score,
        "scores": {"exact": score},
        "visual_tokens": tokens if budget is None else budget,
        "visual_tokens_total": tokens,
        "visual_tokens_spent": tokens if spent is None else spent,
        "logprobs": [math.log(sure)],
    }


def runs():
    return {
        str(budget): [row(n, score, budget) for n, score in enumerate(own)]
        for budget, own in SCORES.items()
    }


def test_oracle_takes_the_smallest_that_answers_right_and_the_smallest_where_none_does():
    assert choices(fixed(runs())) == [1, 4, 1, 1]
    found = compare(runs())
    assert found["oracle"]["score"] == 0.75
    assert found["oracle"]["visual_tokens"] == (1 + 4 + 1 + 1) / 4
    assert found["oracle"]["chosen"] == {"1": 3, "4": 1, "16": 0}
    assert found["oracle"]["against_full"] == 0.25
    assert [own["score"] for own in found["budgets"]] == [0.5, 0.5, 0.5]
    assert [own["visual_tokens"] for own in found["budgets"]] == [1, 4, 16]
    assert found["budgets"][0]["tasks"] == {"even": 1.0, "odd": 0.0}
    assert found["budgets"][2]["against_full_stderr"] == 0
    gaps = [0, -1, 1, 0]  # budget 1 against 16, question by question
    spread = math.sqrt(sum(gap**2 for gap in gaps) / 3 / 4)
    assert found["budgets"][0]["against_full_stderr"] == pytest.approx(spread)


def test_graded_scores_count_as_right_where_no_budget_does_better():
    made = {1: [row(0, 0.4, 1), row(1, 0.7, 1)], 4: [row(0, 0.8, 4), row(1, 0.7, 4)]}
    assert choices(made) == [4, 1]


def test_only_questions_that_every_run_answered_count():
    some = runs()
    some["16"] = some["16"][1:]  # its first question was skipped
    found = compare(some)
    assert found["questions"] == 3
    assert found["budgets"][0]["score"] == pytest.approx(1 / 3)
    twice = {"1": [row("a", 1, 1), row("a", 0, 1)], "4": [row("a", 0, 4), row("a", 1, 4)]}
    assert compare(twice)["oracle"]["score"] == 1


def test_two_models_are_compared_question_by_question():
    better = {"4": [row(n, 1.0, 4) for n in range(4)], "64": [row(0, 1.0, 64)]}
    (only,) = differences(better, runs())
    assert (only["choice"], only["questions"], only["other"]) == ("4", 4, 0.5)
    assert only["difference"] == 0.5
    spread = math.sqrt(4 * 0.25 / 3 / 4)
    assert only["low"] == pytest.approx(0.5 - 1.96 * spread)
    assert difference_table([only])[1][0][:4] == ["4", 1.0, 0.5, 0.5]


def test_table_and_files_show_every_point(tmp_path):
    some = runs()
    auto = [row(n, score, 4, spent=5, budget=4) for n, score in enumerate([1, 1, 0, 0])]
    found = compare({**some, "auto": auto}, seconds={"1": 0.01, "auto": 0.02})
    assert [own["choice"] for own in points(found)] == ["1", "4", "16", "auto", "oracle"]
    header, lines = table(found)
    assert len(header) == len(lines[0]) == 8
    assert lines[3] == ["auto", 0.5, round(found["auto"]["stderr"], 4), 0.0, 0.0, 4.0, 5.0, 0.02]
    assert [line[0] for line in table(found, oracle=False)[1]] == ["1", "4", "16", "auto"]
    assert found["auto"]["chosen"] == {"4": 4}
    read = list(csv.DictReader(curve_csv(found).splitlines()))
    assert [line["spent"] for line in read] == ["1.0", "4.0", "16.0", "5.0", "1.75"]
    assert read[0]["seconds_per_question"] == "0.01"
    assert read[1]["seconds_per_question"] == ""
    items = list(csv.reader(items_csv(some).splitlines()))
    assert items[0] == ["id", "task", "oracle", "1", "4", "16"]
    assert items[2] == ["1", "odd", "4", "0", "1", "1"]
    draw_curve(found, tmp_path / "curve.png", title="test")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- the fitted automatic budget


def graded(count, *, seed, informed=True):
    """Questions of growing difficulty; confidence tells how far a budget is from its limit."""
    dice = random.Random(seed)
    made = {1: [], 16: [], 256: []}
    for id in range(count):
        hard = dice.random()
        for budget, limit in zip(made, (0.5, 0.8, 0.9), strict=True):
            gap = (limit - hard) * 8 + dice.gauss(0, 0.5)
            sure = 1 / (1 + math.exp(-gap)) if informed else dice.uniform(0.01, 1)
            made[budget].append(row(id, float(hard < limit), budget, sure=sure))
    return made


def play(policy: AutoBudget, made):
    score = spent = 0.0
    count = len(made[256])
    for number in range(count):
        for rung, budget in enumerate(policy.budgets):
            own = made[budget][number]
            spent += own["visual_tokens_total"] / count
            if policy.enough(rung, own["logprobs"]):
                score += own["score"] / count
                break
    return score, spent


def test_a_fitted_policy_saves_tokens_on_other_questions_and_keeps_the_score():
    fit = fit_auto(graded(1500, seed=1), tolerance=0.005)
    assert play(fit.policy, graded(1500, seed=1)) == pytest.approx((fit.score, fit.spent))
    other = graded(1500, seed=2)
    score, spent = play(fit.policy, other)
    full = sum(own["score"] for own in other[256]) / 1500
    assert score > full - 0.015
    assert spent < 0.5 * 256
    assert fit.policy.fitted["questions"] == 1500
    strict = fit_auto(graded(1500, seed=1), tolerance=0.0)
    loose = fit_auto(graded(1500, seed=1), tolerance=0.1)
    assert loose.spent < fit.spent <= strict.spent


def test_confidence_that_says_nothing_buys_nothing():
    made = graded(1500, seed=3, informed=False)
    fit = fit_auto(made, tolerance=0.0)
    assert fit.policy.budgets[-1] == 256
    assert fit.spent > 0.8 * 256


def test_a_small_budget_that_is_as_good_is_taken_alone():
    made = {b: [row(n, float(n % 3 > 0), b, sure=0.3) for n in range(40)] for b in (1, 4, 16)}
    assert fit_auto(made, tolerance=0.0).policy.budgets == [1]


def test_rows_that_cannot_be_fitted():
    with pytest.raises(DataError, match="two or more"):
        fit_auto({4: [row(0, 1, 4)]})
    bare = {b: [{k: v for k, v in row(0, 1, b).items() if k != "logprobs"}] for b in (1, 4)}
    with pytest.raises(DataError, match="log-probabilities"):
        fit_auto(bare)
