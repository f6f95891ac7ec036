"""Two results question by question: the mean difference, its interval, and a paired test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from retinue.core.errors import DataError
from retinue.decode.rows import RowFile
from retinue.eval.results import mean, stderr

Rows = list[dict[str, Any]]
FLIPS = 10_000


def read_result(path: Path) -> dict[str, Rows]:
    """Task -> rows of a result file, a file of rows, or a folder with result.json.

    Raises DataError where there are none.
    """
    place = path / "result.json" if path.is_dir() else path
    if place.suffix == ".jsonl":
        return grouped(RowFile(place).rows)
    try:
        document = json.loads(place.read_text("utf-8"))
        files = document.get("files") or [f"{place.stem}.rows.jsonl"]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            "no result of an evaluation",
            where=str(place),
            rule=f"{type(error).__name__}: {error}",
            fix="name the file that `retinue eval --json` wrote, or its rows",
        ) from None
    rows: Rows = []
    for name in files:
        own = place.with_name(name)
        if not own.exists():
            raise DataError("the rows of a result are missing", where=str(own))
        rows += RowFile(own).rows
    return grouped(rows)


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, Rows]:
    """Rows that have a score, by their task."""
    found: dict[str, Rows] = {}
    for row in rows:
        if row.get("score") is not None:
            found.setdefault(str(row["task"]), []).append(dict(row))
    return found


def paired(own: Mapping[str, Rows], other: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """One line per task that both have. Raises DataError where they share no question."""
    found = []
    for task in (name for name in own if name in other):
        theirs = {row["id"]: row for row in other[task]}
        both = [(row, theirs[row["id"]]) for row in own[task] if row["id"] in theirs]
        if both:
            found.append({"task": task, **difference(both)})
            found[-1]["left_out"] = len(own[task]) + len(other[task]) - 2 * len(both)
    if not found:
        raise DataError(
            "the two results share no question",
            where="compare",
            rule=f"tasks of one: {', '.join(own)}; of the other: {', '.join(other)}",
        )
    return found


def difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """Means of both, their difference with its 95 % interval, wins, losses, and p of the test.

    p: McNemar's exact test where scores are 0 or 1, else the sign-flip permutation test with
    10,000 fixed draws; two-sided.
    """
    own = [float(row["score"]) for row, _ in pairs]
    other = [float(row["score"]) for _, row in pairs]
    gaps = [a - b for a, b in zip(own, other, strict=True)]
    middle, spread = mean(gaps), stderr(gaps)
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    binary = all(value in (0.0, 1.0) for value in (*own, *other))
    return {
        "questions": len(pairs),
        "score": mean(own),
        "other": mean(other),
        "difference": middle,
        "low": middle - 1.96 * spread,
        "high": middle + 1.96 * spread,
        "wins": wins,
        "losses": losses,
        "test": "mcnemar" if binary else "sign flips",
        "p": mcnemar(wins, losses) if binary else sign_flips(gaps),
    }


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p of so uneven a split of the questions on which the two differ."""
    count, few = wins + losses, min(wins, losses)
    tail = sum(comb(count, k) for k in range(few + 1))
    return min(1.0, tail / 2 ** (count - 1)) if count else 1.0


def sign_flips(gaps: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p of a mean difference when every question's sign were a coin's."""
    moved = np.array([gap for gap in gaps if gap])
    seen, draw = abs(float(moved.sum())) - 1e-12, np.random.default_rng(seed)
    hits = sum(
        abs(float(moved @ (2 * draw.integers(0, 2, len(moved)) - 1))) >= seen for _ in range(FLIPS)
    )
    return (hits + 1) / (FLIPS + 1)


def table(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of the human table: narrow enough for a terminal of 80 columns."""
    header = ["task", "count", "A", "B", "A - B", "95 %", "A : B", "p"]
    lines = [
        [
            own["task"],
            own["questions"],
            *(round(own[key], 3) for key in ("score", "other", "difference")),
            f"{own['low']:+.3f} to {own['high']:+.3f}",
            f"{own['wins']} : {own['losses']}",
            "<0.001" if own["p"] < 0.001 else f"{own['p']:.3f}",
        ]
        for own in found
    ]
    return header, lines
