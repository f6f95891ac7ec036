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


def igvlm(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The option as IG-VLM's evaluation of videos finds it (arXiv 2403.18406)."""
    letter = igvlm_letter(prediction)
    return best(references, lambda wanted: {"choice": float(letter == wanted)})


def igvlm_letter(prediction: str) -> str | None:
    """The first character if it is one of A to E; but `A:` or `A)` wins, looked for in that order.

    Where the text says `answer is`, only what follows is searched.
    """
    first = prediction[:1].upper()
    _, said, rest = prediction.partition("answer is")
    text = rest if said else prediction
    marked = (letter for letter in "ABCDE" if f"{letter}:" in text or f"{letter})" in text)
    return next(marked, first if first and first in "ABCDE" else None)
