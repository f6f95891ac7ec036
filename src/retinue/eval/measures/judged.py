"""Measure of answers that a judge scored beside another model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.measures.plain import fact
from retinue.eval.scorers.base import mean

Row = Mapping[str, Any]


def against(rows: Sequence[Row]) -> dict[str, float]:
    """The model's mean score over the reference's, both of them, and the share by category.

    Source: LLaVA-Bench's summary (haotian-liu/LLaVA); invalid reviews count, as there.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(fact(row, "category", "")), []).append(row)
    model = mean([row["scores"]["model"] for row in rows])
    reference = mean([row["scores"]["reference"] for row in rows])
    return {
        "relative": share(rows),
        "reference": reference,
        "model": model,
        **{name: share(own) for name, own in sorted(groups.items()) if name},
    }


def share(rows: Sequence[Row]) -> float:
    reference = mean([row["scores"]["reference"] for row in rows])
    return mean([row["scores"]["model"] for row in rows]) / reference if reference else 0.0
