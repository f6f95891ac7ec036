"""Measures that are means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.scorers.base import mean

Row = Mapping[str, Any]


def average(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of every metric of the scorer."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    return {
        name: mean([row["scores"][name] for row in rows if name in row["scores"]]) for name in names
    } or {"score": 0.0}


def circular(rows: Sequence[Row]) -> dict[str, float]:
    """Share of questions that are right in every order of their options, and the plain mean.

    Source: MMBench's circular evaluation (arXiv 2307.06281).
    """
    turns: dict[str, list[float]] = {}
    for row in rows:
        item = f"{fact(row, '_item', row['id'])}#{row.get('_draw', 0)}"
        turns.setdefault(item, []).append(float(row["score"]))
    return {
        "circular": mean([min(scores) for scores in turns.values()]),
        "vanilla": mean([float(row["score"]) for row in rows]),
    }


def fact(row: Row, name: str, default: Any = None) -> Any:
    """What a row says about its question."""
    return row.get("facts", {}).get(name, default)
