"""Measures of answers that were ranked by likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.scorers.base import mean

Row = Mapping[str, Any]


def auc(rows: Sequence[Row]) -> dict[str, float]:
    """Area under the ROC curve: how often a positive row is surer than a negative one; accuracy.

    Positive is the answer that comes last in the alphabet (`yes` after `no`), as in OpenFlamingo's
    evaluation (arXiv 2308.01390); its probability is over the names that were ranked. Ties count a
    half; without both kinds of rows the area is 0.5. Rows without a ranking count by their text.
    """
    positive = max((row["references"][0] for row in rows), default="")
    sure = sorted((certainty(row, positive), row["references"][0] == positive) for row in rows)
    wanted = sum(right for _, right in sure)
    pairs = wanted * (len(sure) - wanted)
    area, below, at = 0.0, 0, 0
    while at < len(sure):
        end = at
        while end < len(sure) and sure[end][0] == sure[at][0]:
            end += 1
        hits = sum(right for _, right in sure[at:end])
        area += hits * (below + (end - at - hits) / 2)
        below, at = below + end - at - hits, end
    return {
        "roc_auc": area / pairs if pairs else 0.5,
        "accuracy": mean([float(row["score"]) for row in rows]),
    }


def certainty(row: Row, name: str) -> float:
    """Probability of a name among those that were ranked."""
    ranking = row.get("ranking")
    if not ranking:
        return float(str(row["text"]).strip(" .").lower() == name.lower())
    most = max(ranking.values())
    total = sum(math.exp(score - most) for score in ranking.values())
    return math.exp(ranking[name] - most) / total if name in ranking else 0.0


def top5(rows: Sequence[Row]) -> dict[str, float]:
    """Share of rows whose likeliest name is right, and whose five likeliest hold the right one."""
    near = [
        float(any(name in row["references"] for name in [*row.get("ranking", {})][:5]))
        for row in rows
    ]
    return {"top1": mean([float(row["score"]) for row in rows]), "top5": mean(near)}
