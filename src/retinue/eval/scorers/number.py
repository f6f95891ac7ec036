"""Scorer of numbers: digits or English words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retinue.eval.scorers.base import bad_reference, best

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip

_TOKEN = re.compile(rf"-?\d[\d,]*(?:\.\d+)?|\b(?:{'|'.join(WORDS)})\b")


def number(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The first number of the answer equals the reference's; `within5`: at most 5 % off.

    The 5 % are ChartQA's relaxed accuracy (arXiv 2203.10244, section 5); zero must be met exactly.
    """

    def score(wanted: str) -> dict[str, float]:
        found, right = first_number(prediction), first_number(wanted)
        if right is None:
            raise bad_reference(wanted, lacks="number", scorer="number")
        if found is None:
            return {"number": 0.0, "within5": 0.0}
        near = abs(found - right) <= 0.05 * abs(right)
        return {"number": float(found == right), "within5": float(near)}

    return best(references, score)


def first_number(text: str) -> float | None:
    """The first number of a text, `1,000.5` and `three` included; None where there is none."""
    match = _TOKEN.search(text.lower())
    if match is None:
        return None
    token = match[0]
    return float(WORDS.index(token)) if token in WORDS else float(token.replace(",", ""))
