"""Scorers of text, numbers and choices against literal cases."""

from __future__ import annotations

import pytest

from retinue.core.errors import ConfigError, DataError
from retinue.eval.scorers import SCORERS, headline
from retinue.eval.scorers.choice import choice
from retinue.eval.scorers.number import first_number, number
from retinue.eval.scorers.words import caption, contains, edit_distance, exact, text


@pytest.mark.parametrize(
    ("prediction", "references", "value"),
    [
        ("Red.", ["red"], 1.0),
        ("  top   Left ", ["top left"], 1.0),
        ("top", ["top left"], 0.0),
        ("'yes'", ["no", "yes"], 1.0),
        ("-5", ["5"], 0.0),
        ("C++", ["C"], 0.0),
        ("", ["red"], 0.0),
    ],
)
def test_exact(prediction: str, references: list[str], value: float) -> None:
    assert exact(prediction, references) == {"exact": value}


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("It is red, I think.", "red", 1.0),
        ("It is bored.", "red", 0.0),
        ("a large red square", "red square", 1.0),
        ("red large square", "red square", 0.0),
        ("", "red", 0.0),
    ],
)
def test_contains(prediction: str, reference: str, value: float) -> None:
    assert contains(prediction, [reference]) == {"contains": value}


def test_edit_distance_literals() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("AB", "AB") == 0


def test_text_keeps_the_similarity_that_anls_drops() -> None:
    assert text("ab7k", ["AB7K"]) == {"similarity": 1.0, "anls": 1.0, "exact": 1.0}
    assert text("AB7X", ["AB7K"]) == {"similarity": 0.75, "anls": 0.75, "exact": 0.0}
    assert text("AXYZ", ["AB7K"]) == {"similarity": 0.25, "anls": 0.0, "exact": 0.0}
    assert text("AXYZ", ["AB7K", "AXY2"])["anls"] == 0.75


def test_caption_word_f1() -> None:
    scores = caption("a red square and a ring", ["a red square and a blue ring"])
    assert scores == {"word_f1": pytest.approx(12 / 13), "exact": 0.0}
    assert caption("red red", ["red"])["word_f1"] == pytest.approx(2 / 3)
    assert caption("A red square.", ["a red square"]) == {"word_f1": 1.0, "exact": 1.0}
    assert caption("", ["red"])["word_f1"] == 0.0


@pytest.mark.parametrize(
    ("prediction", "number_", "within"),
    [("three", 1, 1), ("There are 3.", 1, 1), ("4", 0, 0), ("3.1", 0, 1), ("none", 0, 0)],
)
def test_number(prediction: str, number_: float, within: float) -> None:
    assert number(prediction, ["3"]) == {"number": number_, "within5": within}


def test_first_number_reads_signs_groups_and_words() -> None:
    assert first_number("about 1,000.50 or so") == 1000.5
    assert first_number("-2 degrees") == -2
    assert first_number("Seventeen") == 17
    assert first_number("someone") is None


def test_zero_must_be_met_exactly() -> None:
    assert number("0.01", ["0"]) == {"number": 0.0, "within5": 0.0}


@pytest.mark.parametrize(
    "prediction", ["B", "b.", "(B) a dog", "The answer is B.", "Answer: (B)", "I choose (b)", "dog"]
)
def test_choice_finds_the_letter_or_the_text(prediction: str) -> None:
    assert choice(prediction, ["B", "dog"]) == {"choice": 1.0}


@pytest.mark.parametrize("prediction", ["A", "a dog", "The answer is a dog", "", "C. dog"])
def test_choice_refuses_the_rest(prediction: str) -> None:
    assert choice(prediction, ["B", "dog"]) == {"choice": 0.0}


def test_every_scorer_loads_is_described_and_names_its_headline() -> None:
    right = {
        "iou": "[1,1,2,2]", "det": "[1,1,2,2]", "grounded": "<p>x</p>[1,1,2,2]", "number": "2",
        "oks": "nose[1 1] left knee[2 3]", "relations": "a above b", "choice": "A",
        "iou50": "[1,1,2,2]", "gaokao": "A", "gaokao-several": "A", "igvlm": "A", "scienceqa": "A",
        "mme": "yes", "pope": "yes",
    }  # fmt: skip
    for name in SCORERS:
        answer = right.get(name, "red")
        scores = SCORERS.get(name)(answer, [answer] * 10)  # ten: the annotators of VQA
        assert set(scores.values()) == {1.0}, name
        assert headline(scores) == 1.0
        assert SCORERS.describe(name).endswith((".", ";")) or len(SCORERS.describe(name)) > 20


def test_unknown_scorers_and_unreadable_references_are_the_users_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        SCORERS.get("exakt")
    for name, bad in [("iou", "red"), ("number", "red"), ("oks", "nose[1 1]")]:
        with pytest.raises(DataError, match="holds no"):
            SCORERS.get(name)("3 [1,2,3,4]", [bad])
    with pytest.raises(DataError, match="no reference"):
        exact("red", [])
