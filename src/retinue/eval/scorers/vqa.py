"""VQA accuracy against ten annotators, with the two public ways to normalise an answer.

Sources: VQA's evaluation (https://visualqa.org/evaluation.html) and the evaluator of TextVQA in
MMF (https://github.com/facebookresearch/mmf), which LLaVA uses as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from retinue.eval.scorers.base import mean

_ONE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't
we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
_TWO = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
you'd've"""


def _contractions() -> dict[str, str]:
    """Word as it was typed -> with its apostrophes; one may be missing, not both."""
    found = {word.replace("'", ""): word for word in _ONE.split()}
    for word in _TWO.split():
        stem, middle, last = word.split("'")
        found[f"{stem}{middle}'{last}"] = found[f"{stem}'{middle}{last}"] = word
    found |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    found |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    return {**found, "somebody'd": "somebodyd"}  # the public table has this one the other way


CONTRACTIONS = _contractions()
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = {"a", "an", "the"}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")
PERIODS = 32
"""So many periods are removed at most: the public code passes a flag where the count stands."""


def punctuation(text: str) -> str:
    """Marks vanish beside a space, or where the text has a comma between digits; else: a space."""
    digits = bool(_COMMA.search(text))
    found = text
    for mark in MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or digits else " ")
    return _PERIOD.sub("", found, count=PERIODS)


def words(text: str) -> str:
    """Lower case, numbers to ten as digits, no articles, contractions with their apostrophes."""
    spelled = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in spelled if word not in ARTICLES)


def vqa_answer(text: str) -> str:
    """An answer as VQA's own evaluation compares it."""
    return words(punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def evalai_answer(text: str) -> str:
    """An answer as the evaluation server's processor writes it; TextVQA and uploads use this."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_answer(text)


def agreement(answer: str, given: Sequence[str]) -> float:
    """Mean over annotators of min(1, others that agree / 3)."""
    others = [sum(other == answer for other in given) - (one == answer) for one in given]
    return mean([min(1.0, count / 3) for count in others])


def vqa(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """VQA accuracy: mean over annotators of min(1, agreeing others / 3).

    Both sides are normalised. Public copies of the evaluation (https://visualqa.org/evaluation.html)
    differ in whether they do so where all annotators agree; here they always are.
    """
    given = [vqa_answer(one) for one in references]
    return {"vqa": agreement(vqa_answer(prediction), given)}


def textvqa(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """VQA accuracy with both sides normalised by the evaluation server's processor.

    Source: TextVQA (arXiv 1904.08920) and its evaluator in MMF, which LLaVA's scripts carry.
    """
    given = [evalai_answer(one) for one in references]
    return {"vqa": agreement(evalai_answer(prediction), given)}


def answer_scores(references: Sequence[str]) -> dict[str, float]:
    """Every different answer of the annotators -> what it would score under `textvqa`."""
    given = [evalai_answer(one) for one in references]
    return {answer: agreement(answer, given) for answer in dict.fromkeys(given)}
