"""Reading what a judge model wrote, and the figures made of it.

Source: LLaVA-Bench as haotian-liu/LLaVA reviews it: two scores on the first line of a review.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.scorers.base import mean

INVALID = (-1.0, -1.0)


def pair(review: str) -> tuple[float, float]:
    """The two numbers on the first line of a review, parted by a space or comma; else INVALID."""
    fields = review.partition("\n")[0].replace(",", " ").split(" ")
    if len(fields) != 2:
        return INVALID
    try:
        return float(fields[0]), float(fields[1])
    except ValueError:
        return INVALID


def relative(reviews: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """`all` and each category -> (model / reference * 100, reference * 10, model * 10).

    reviews: {category, tuple}. Means over reviews as they stand, rounded to one digit; invalid
    ones count, as in the original.
    """
    groups: dict[str, list[Sequence[float]]] = {"all": []}
    for review in reviews:
        groups["all"].append(review["tuple"])
        groups.setdefault(str(review["category"]), []).append(review["tuple"])
    found = {}
    for name in ["all", *sorted(set(groups) - {"all"})]:
        reference = mean([float(scores[0]) for scores in groups[name]])
        model = mean([float(scores[1]) for scores in groups[name]])
        share = model / reference * 100 if reference else 0.0
        found[name] = (round(share, 1), round(reference * 10, 1), round(model * 10, 1))
    return found
