"""Scorer of relation triples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retinue.eval.scorers.base import best, f1
from retinue.eval.scorers.words import normalise


def relations(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of the set of triples, separated by `;` or line ends, each compared as normalised text.

    Precision and recall of triples are the measures of visual relation detection (arXiv
    1608.00187); here without a ranking, since text carries no confidences.
    """
    found = triples(prediction)

    def score(reference: str) -> dict[str, float]:
        wanted = triples(reference)
        hits = len(found & wanted)
        return {
            "f1": f1(hits, found=len(found), wanted=len(wanted)),
            "precision": hits / len(found) if found else float(not wanted),
            "recall": hits / len(wanted) if wanted else 1.0,
        }

    return best(references, score)


def triples(text: str) -> set[str]:
    """The triples of an answer, each once."""
    return {normalise(part) for part in re.split(r"[;\n]", text) if normalise(part)}
