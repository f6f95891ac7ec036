"""What a scorer is, and the rule that the best reference decides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from retinue.core.errors import DataError


class Scorer(Protocol):
    """Compare one answer with its references: metric -> value, the headline metric first."""

    def __call__(self, prediction: str, references: Sequence[str]) -> dict[str, float]: ...


def headline(scores: dict[str, float]) -> float:
    """The metric that stands for all of a scorer's: its first."""
    return next(iter(scores.values()))


def best(references: Sequence[str], score: Callable[[str], dict[str, float]]) -> dict[str, float]:
    """The scores against the reference with the highest headline, the first of equals.

    Raises DataError where there is no reference.
    """
    if not references:
        raise DataError("a row has no reference", where="references", fix="give it an answer")
    return max((score(reference) for reference in references), key=headline)


def bad_reference(reference: str, *, lacks: str, scorer: str) -> DataError:
    """The error for a reference that the scorer cannot read."""
    return DataError(
        f"the reference {reference!r:.80} holds no {lacks}",
        where="references",
        fix=f"correct it, or choose another scorer than {scorer!r}",
    )


def mean(values: Sequence[float]) -> float:
    """Their mean; 0 where there is none."""
    return sum(values) / len(values) if values else 0.0


def f1(hits: int, *, found: int, wanted: int) -> float:
    """Harmonic mean of hits / found and hits / wanted; 1 where nothing is wanted nor found."""
    return 2 * hits / (found + wanted) if found + wanted else 1.0


def overlap(found: Iterable[Hashable], wanted: Iterable[Hashable]) -> int:
    """Number of elements two multisets share."""
    rest = list(wanted)
    hits = 0
    for item in found:
        if item in rest:
            rest.remove(item)
            hits += 1
    return hits
