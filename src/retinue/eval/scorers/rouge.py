"""ROUGE-L: how long a common subsequence of words is, as its F measure.

Source: Lin, "ROUGE: a package for automatic evaluation of summaries" (2004).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from retinue.eval.scorers.porter import stem

OTHER = re.compile(r"[^a-z0-9]+")


def words(text: str, *, stemmed: bool = True) -> list[str]:
    """Runs of letters and digits in lower case; those of more than three are stemmed."""
    found = OTHER.sub(" ", text.lower()).split()
    return [stem(word) if stemmed and len(word) > 3 else word for word in found]


def rouge_f(prediction: str, reference: str, *, stemmed: bool = True) -> float:
    """F measure of the longest common subsequence of two texts' words, 0..1."""
    said, wanted = words(prediction, stemmed=stemmed), words(reference, stemmed=stemmed)
    common = longest(said, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def longest(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, match in enumerate(other, start=1):
            above = row[at]
            row[at] = before + 1 if word == match else max(above, row[at - 1])
            before = above
    return row[-1]


def rouge_l(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-L of stemmed words against the reference that it is nearest to.

    Source: Lin 2004 (https://aclanthology.org/W04-1013), words and stems as rouge_score has them.
    """
    return {"rouge_l": max((rouge_f(prediction, one) for one in references), default=0.0)}
