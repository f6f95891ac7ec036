"""Scorers of short answers by the public scripts' own rules, quirks included."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retinue.eval.scorers.base import best
from retinue.eval.scorers.words import edit_distance

_SAID = re.compile(r"The answer is ([A-Z]).")
FAILED = "FAILED"


def gqa_answer(text: str) -> str:
    """What LLaVA hands to GQA's evaluation: no periods at the end, lower case."""
    return text.rstrip(".").lower()


def gqa(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Equality after the end's periods and case are gone.

    Sources: GQA (arXiv 1902.09506), its evaluation's equality; haotian-liu/LLaVA, the conversion.
    """
    return best(references, lambda wanted: {"exact": float(gqa_answer(prediction) == wanted)})


def letter(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The answer is the letter and nothing else; case and a period count.

    Source: SEED-Bench (arXiv 2307.16125) as haotian-liu/LLaVA scores it.
    """
    return best(references, lambda wanted: {"exact": float(prediction == wanted)})


def scienceqa_letter(text: str, options: Sequence[str] = "ABCDE") -> str:
    """The letter of an answer: alone, before `. `, or once as `The answer is X.`; else FAILED."""
    if text in options:
        return text
    if len(text) >= 3 and text[0] in options and text[1:3] == ". ":
        return text[0]
    found = _SAID.findall(text)
    return found[0] if len(found) == 1 else FAILED


def scienceqa(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The letter that the answer names by ScienceQA's rules is the right one.

    Source: ScienceQA (arXiv 2209.09513) as haotian-liu/LLaVA scores it.
    """
    found = scienceqa_letter(prediction)
    return best(references, lambda wanted: {"exact": float(found == wanted)})


def pope_answer(text: str) -> str:
    """`no` if the first sentence has the word No, not or no, else `yes`."""
    said = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(said) else "yes"


def pope(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Yes or no by the first sentence, as POPE (arXiv 2305.10355) reads it; the measure is F1."""
    found = pope_answer(prediction)
    return best(references, lambda wanted: {"exact": float(found == wanted)})


def mme_answer(text: str) -> str:
    """`yes`, `no`, or `other` where neither stands in the first four characters."""
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def mme(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Yes or no in the first four characters, as MME's calculation (arXiv 2306.13394) has it."""
    found = mme_answer(prediction.lower())
    return best(references, lambda wanted: {"exact": float(found == wanted.lower())})


def exact_nodot(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Equality without periods, case and outer spaces.

    Source: SPHINX's evaluation (https://github.com/Alpha-VLLM/LLaMA2-Accessory), used there for
    GQA, VSR, AI2D, Q-Bench and OCR-VQA.
    """
    found = _plain(prediction)
    return best(references, lambda wanted: {"exact": float(found == _plain(wanted))})


def relaxed(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Numbers may be off by 5 %; other answers are equal but for case.

    Source: ChartQA (arXiv 2203.10244), section 5.1. A percent sign divides by 100; a target of
    zero is compared as text.
    """
    return best(references, lambda wanted: {"relaxed": float(near(wanted, prediction))})


def near(target: str, found: str, *, tolerance: float = 0.05) -> bool:
    """Whether `found` meets a target within `tolerance` of it."""
    number, other = _number(target), _number(found)
    if number and other is not None:
        return abs(other - number) / abs(number) <= tolerance
    return found.lower() == target.lower()


def anls(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Edit similarity without case, nothing below 0.5; the best reference counts.

    Source: DocVQA (arXiv 2007.00398) with the metric of arXiv 1905.13648.
    """

    def score(wanted: str) -> dict[str, float]:
        one, other = (" ".join(text.lower().split()) for text in (prediction, wanted))
        longest = max(len(one), len(other))
        similarity = 1 - edit_distance(one, other) / longest if longest else 1.0
        return {"anls": similarity if similarity >= 0.5 else 0.0}

    return best(references, score)


def _plain(text: str) -> str:
    return text.replace(".", "").strip().lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
