"""Measures that are means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.scorers.base import mean
from retinue.world.baseline import majority_baseline

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


def domains(rows: Sequence[Row]) -> dict[str, float]:
    """The mean over all questions, then over those of each domain.

    Source: MMMU's evaluation (https://github.com/MMMU-Benchmark/MMMU).
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(str(fact(row, "domain", "other")), []).append(float(row["score"]))
    return {
        "accuracy": mean([float(row["score"]) for row in rows]),
        **{name: mean(own) for name, own in sorted(groups.items())},
    }


def tasks(rows: Sequence[Row]) -> dict[str, float]:
    """The mean over all questions, what the best constant answer to each task scores, each task."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(str(fact(row, "task", row["task"])), []).append(float(row["score"]))
    constant = majority_baseline(
        {
            "task": fact(row, "task", row["task"]),
            "answer": row["references"][0],
            "scorer": row["scorer"],
        }
        for row in rows
    )
    return {
        "accuracy": mean([float(row["score"]) for row in rows]),
        "baseline": constant["all"],
        **{name: mean(own) for name, own in sorted(groups.items())},
    }


def fact(row: Row, name: str, default: Any = None) -> Any:
    """What a row says about its question."""
    return row.get("facts", {}).get(name, default)
