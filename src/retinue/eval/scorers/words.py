"""Scorers of text: exact, contains, edit similarity, word overlap."""

from __future__ import annotations

from collections.abc import Sequence

from retinue.eval.scorers.base import best, f1, overlap

MARKS = " .,;:!?\"'`*()[]{}"
"""What is stripped from both ends; signs stay, so that -5 is not 5 and C++ is not C."""


def normalise(text: str) -> str:
    """Lower case, single spaces, no quotes or punctuation at either end."""
    return " ".join(text.lower().split()).strip(MARKS)


def exact(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Equality after `normalise`; the short-answer metric of GQA (arXiv 1902.09506)."""
    return best(
        references, lambda wanted: {"exact": float(normalise(prediction) == normalise(wanted))}
    )


def contains(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Whether the words of a reference stand in the answer side by side, whole words only.

    Our own rule: the usual substring test, narrowed so that "cat" is not found in "category".
    """

    def score(wanted: str) -> dict[str, float]:
        words, inner = _words(prediction), _words(wanted)
        spans = range(len(words) - len(inner) + 1)
        return {"contains": float(any(words[i : i + len(inner)] == inner for i in spans))}

    return best(references, score)


def text(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Edit similarity 1 - d / longest, without case; `anls` drops values below 0.5.

    ANLS: Biten et al. 2019, Scene Text Visual Question Answering (arXiv 1905.13648), section 4.
    """

    def score(wanted: str) -> dict[str, float]:
        one, other = (" ".join(t.lower().split()) for t in (prediction, wanted))
        longest = max(len(one), len(other))
        similarity = 1 - edit_distance(one, other) / longest if longest else 1.0
        return {
            "similarity": similarity,
            "anls": similarity if similarity >= 0.5 else 0.0,
            "exact": float(one == other),
        }

    return best(references, score)


def caption(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of the words, each counted as often as it occurs (the token F1 of SQuAD), and equality.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), section 6.1, without its removal of articles.
    """

    def score(wanted: str) -> dict[str, float]:
        words, inner = _words(prediction), _words(wanted)
        hits = overlap(words, inner)
        return {
            "word_f1": f1(hits, found=len(words), wanted=len(inner)),
            "exact": float(words == inner),
        }

    return best(references, score)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions cost 1."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def _words(value: str) -> list[str]:
    stripped = (word.strip(MARKS) for word in value.lower().split())
    return [word for word in stripped if word]
