"""ROUGE-L and its stemmer against values worked out by hand and by NLTK's stemmer."""

from __future__ import annotations

import pytest

from retinue.eval.scorers import SCORERS
from retinue.eval.scorers.porter import stem
from retinue.eval.scorers.rouge import longest, rouge_f

STEMS = {
    "caresses": "caress", "ponies": "poni", "ties": "tie", "cats": "cat", "agreed": "agre",
    "plastered": "plaster", "motoring": "motor", "sing": "sing", "conflated": "conflat",
    "hopping": "hop", "falling": "fall", "filing": "file", "happy": "happi", "sky": "sky",
    "relational": "relat", "hopefulness": "hope", "electriciti": "electr", "adoption": "adopt",
    "probate": "probat", "rate": "rate", "controll": "control", "roll": "roll", "dying": "die",
    "died": "die", "quickly": "quickli", "enjoy": "enjoy", "generalli": "gener",
}  # fmt: skip


@pytest.mark.parametrize("word", STEMS)
def test_stems(word: str) -> None:
    assert stem(word) == STEMS[word]


def test_longest_common_subsequence() -> None:
    assert longest("abcbdab", "bdcaba") == 4
    assert longest("", "abc") == 0


def test_rouge_l() -> None:
    # "the cat run quick" and "cat run quickli" share "cat run": P 2/3, R 2/4
    assert rouge_f("cats running quickly", "the cat runs quick") == pytest.approx(4 / 7)
    assert rouge_f("Cats, running", "cats running", stemmed=False) == 1.0
    assert rouge_f("", "cats") == rouge_f("?!", "cats") == 0.0
    scorer = SCORERS.get("rouge-l")
    assert scorer("one two", ["three", "two one", "one two"]) == {"rouge_l": 1.0}
    assert scorer("x", []) == {"rouge_l": 0.0}
