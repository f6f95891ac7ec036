"""Rows of a benchmark -> its figures with interval, breakdown and the published ones beside."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retinue.eval.measures import MEASURES
from retinue.eval.measures.captions import cider_each
from retinue.eval.measures.plain import fact
from retinue.eval.results import mean, stderr
from retinue.eval.task import Task

Row = Mapping[str, Any]


def each_score(rows: Sequence[Row]) -> list[float]:
    """The score of every row."""
    return [float(row["score"]) for row in rows]


MEANS: dict[str, Callable[[Sequence[Row]], list[float]]] = {
    "mean": each_score,
    "mmmu": each_score,
    "tasks": each_score,
    "top5": each_score,
    "cider": cider_each,
}
"""Measures that are the mean of something each row has; CIDEr's weights count as known."""
RESAMPLES = 200
FEW = 40
"""A fact with more values than this is no breakdown."""


def task_figures(rows: Sequence[Row], task: Task) -> dict[str, Any]:
    """score with its 95 % interval (low, high), unit, every metric, and groups by fact.

    The interval of a mean is 1.96 standard errors; that of another measure is the bootstrap's,
    which draws all questions of one picture (or all turns of one question) together. Without any
    public answer the score is None.
    """
    known = [row for row in rows if row["score"] is not None]
    found: dict[str, Any] = {"unit": task.unit, "count": len(known)}
    if not known:
        return {**found, "score": None, "low": None, "high": None, "metrics": {}, "groups": {}}
    metrics = MEASURES.get(task.measure)(known)
    score = next(iter(metrics.values()))
    if task.measure in MEANS:
        half = 1.96 * stderr(MEANS[task.measure](known))
        low, high = score - half, score + half
    else:
        low, high = bootstrap(known, task.measure)
    groups = breakdown(known)
    return {**found, "score": score, "low": low, "high": high, "metrics": metrics, "groups": groups}


def bootstrap(rows: Sequence[Row], measure: str, *, seed: int = 0) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of a measure's headline over resampled clusters of rows."""
    clusters: dict[str, list[Row]] = {}
    for row in rows:
        own = fact(row, "_picture") or fact(row, "_item") or row["id"]
        clusters.setdefault(str(own), []).append(row)
    groups, draw = list(clusters.values()), random.Random(seed)
    values = []
    for _ in range(RESAMPLES):
        chosen = [
            {**row, "_draw": number}
            for number, group in enumerate(draw.choices(groups, k=len(groups)))
            for row in group
        ]
        values.append(next(iter(MEASURES.get(measure)(chosen).values())))
    values.sort()
    return values[int(0.025 * RESAMPLES)], values[int(0.975 * RESAMPLES) - 1]


def breakdown(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Fact -> value -> {score, count}; facts that begin with `_` are only for measures."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, value in row.get("facts", {}).items():
            if not name.startswith("_") and isinstance(value, str | int | float):
                own = found.setdefault(name, {})
                own.setdefault(str(value), []).append(float(row["score"]))
    return {
        name: {
            value: {"score": mean(scores), "count": len(scores)}
            for value, scores in sorted(groups.items())
        }
        for name, groups in found.items()
        if 1 < len(groups) <= FEW
    }


def with_benchmark(
    document: Mapping[str, Any], rows: Sequence[Row], *, name: str, task: Task
) -> dict[str, Any]:
    """A result of `retinue eval` with what its task adds: figures, pinned settings, references."""
    own = task_figures(rows, task)
    metrics = {"score": own["score"], **own["metrics"]}
    return {
        **document,
        "metrics": metrics if own["score"] is not None else {},
        "benchmark": {
            "name": name,
            "about": task.about,
            "source": task.source,
            **own,
            "pinned": task.pinned(),
            "references": [one.model_dump(mode="json") for one in task.references],
        },
    }


def in_unit(value: float | None, unit: float) -> str:
    """A figure as tables print it."""
    return "" if value is None else f"{value * unit:.1f}"


def table(documents: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of the human table: a line per benchmark."""
    lines = []
    for document in documents:
        own = document["benchmark"]
        interval = [in_unit(own[key], own["unit"]) for key in ("low", "high")]
        lines.append(
            [own["name"], own["count"], in_unit(own["score"], own["unit"]), "–".join(interval)]
        )
    return ["benchmark", "scored", "score", "95 %"], lines


def reference_table(documents: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(header, rows): published figures beside the user's, with the difference."""
    lines = []
    for document in documents:
        own = document["benchmark"]
        for one in own["references"]:
            gap = ""
            if own["score"] is not None:
                gap = f"{own['score'] * own['unit'] - one['score']:+.1f}"
            lines.append([own["name"], one["model"], f"{one['score']:g}", gap, one["source"]])
    return ["benchmark", "published model", "score", "yours less theirs", "source"], lines
