"""Rows -> figures: per task and over all, with their uncertainty, and the file that keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retinue.core.files import versions
from retinue.eval.questions import Question
from retinue.world.baseline import majority_baseline

Row = Mapping[str, Any]
Figures = dict[str, Any]


def figures(rows: Sequence[Row]) -> Figures:
    """score: mean headline metric; stderr: of that mean; count; and the mean of every metric.

    A metric that only some rows have is averaged over those; rows without a score only count.
    """
    scores = [float(row["score"]) for row in rows if row["score"] is not None]
    found: Figures = {"score": mean(scores), "stderr": stderr(scores), "count": len(rows)}
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    metrics = {
        name: mean([row["scores"][name] for row in rows if name in row["scores"]]) for name in names
    }
    return {**found, "metrics": metrics}


def by_task(rows: Sequence[Row]) -> dict[str, Figures]:
    """Task -> figures and the scorers used, tasks in alphabetical order."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return {
        task: {
            **figures(own),
            "scorer": "+".join(dict.fromkeys(row["scorer"] for row in own)),
        }
        for task, own in sorted(tasks.items())
    }


def baseline(questions: Iterable[Question]) -> dict[str, float]:
    """Task -> what the best constant answer scores, and `all`, over every question."""
    return majority_baseline(
        {"task": item.task, "answer": item.references[0], "scorer": item.scorer}
        for item in questions
    )


def result(
    rows: Sequence[Row],
    *,
    questions: Sequence[Question],
    settings: Mapping[str, Any],
    skipped: int = 0,
    with_baseline: bool = False,
) -> dict[str, Any]:
    """The document that `retinue eval` writes: metrics, tasks, counts, settings, versions."""
    tasks = by_task(rows)
    whole = figures(rows)
    metrics = {"score": whole["score"], "stderr": whole["stderr"], **whole["metrics"]}
    if with_baseline:
        floor = baseline(questions)
        metrics["baseline"] = floor["all"]
        for task, own in tasks.items():
            own["baseline"] = floor[task]
    return {
        "status": "done",
        "metrics": metrics,
        "tasks": tasks,
        "counts": {
            "questions": len(questions),
            "answered": len(rows),
            "skipped": skipped,
            "tokens": sum(len(row["tokens"]) for row in rows),
        },
        "settings": dict(settings),
        "versions": versions(),
    }


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of the human table: one line per task and one for all."""
    metrics, tasks = document["metrics"], document["tasks"]
    against = "baseline" in metrics
    header = ["task", "scorer", "count", "score", "±", *(["baseline"] if against else [])]
    lines = [
        [task, own["scorer"], own["count"], *cells(own, against)] for task, own in tasks.items()
    ]
    lines.append(["all", "", document["counts"]["answered"], *cells(metrics, against)])
    return header, lines


def cells(own: Mapping[str, Any], against: bool) -> list[float]:
    names = ["score", "stderr", *(["baseline"] if against else [])]
    return [round(float(own[name]), 4) for name in names]


def failures(rows: Sequence[Row], *, count: int) -> list[Row]:
    """The rows with the lowest scores below 1, first come first among equals."""
    wrong = [row for row in rows if row["score"] is not None and row["score"] < 1]
    return sorted(wrong, key=lambda row: row["score"])[:count]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def stderr(values: Sequence[float]) -> float:
    """Standard error of a mean: sample deviation / sqrt(n)."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    spread = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(spread / len(values))
