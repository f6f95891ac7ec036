"""Scorer of multiple choice."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retinue.eval.scorers.base import best
from retinue.eval.scorers.words import normalise

_FORMS = (
    re.compile(r"^\s*\(?([A-Za-z])(?:[).:,]|\s*$)"),  # "B", "B.", "(b) a dog"
    re.compile(r"(?i:answer|option|choice)\s*(?i:is)?\s*:?\s*\(?([A-Z])\b"),
    re.compile(r"\(([A-Za-z])\)"),
)


def choice(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The letter that the answer names, or the text of the option, equals a reference.

    The forms are those that ScienceQA's answers take (arXiv 2209.09513): a letter alone or followed
    by text, `The answer is B.`, a letter in brackets. References: the letter, and if wished the
    option's text as another one.
    """
    letter = chosen_letter(prediction)

    def score(wanted: str) -> dict[str, float]:
        if len(normalise(wanted)) == 1:
            return {"choice": float(letter == normalise(wanted).upper())}
        return {"choice": float(normalise(prediction) == normalise(wanted))}

    return best(references, score)


def chosen_letter(prediction: str) -> str | None:
    """The letter an answer chooses in upper case, None where it names none."""
    for form in _FORMS:
        match = form.search(prediction)
        if match:
            return match[1].upper()
    return None
