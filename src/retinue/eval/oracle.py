"""Accuracy against visual tokens: fixed budgets, the automatic one, and the oracle.

The oracle takes, for every question, the fewest visual tokens with which it is answered right, and
the smallest budget where none is (M3, arXiv 2405.17430, section 4.5): what a perfect choice would
reach. Pure functions of rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.results import by_task, mean, stderr

Row = Mapping[str, Any]
Runs = Mapping[str, Sequence[Row]]
"""What was asked for (`36`, `auto`) -> the rows of that run."""

AUTO = "auto"
COLUMNS = (
    "choice",
    "visual_tokens",
    "spent",
    "score",
    "stderr",
    "against_full",
    "against_full_stderr",
    "seconds_per_question",
)


def shared(runs: Runs) -> dict[str, list[Row]]:
    """The rows of questions that every run answered, in one order."""
    keyed = {name: _keyed(rows) for name, rows in runs.items()}
    first = next(iter(keyed.values()))
    keys = [key for key in first if all(key in found for found in keyed.values())]
    return {name: [found[key] for key in keys] for name, found in keyed.items()}


def _keyed(rows: Sequence[Row]) -> dict[tuple[Any, int], Row]:
    seen: dict[Any, int] = {}
    found = {}
    for row in rows:
        seen[row["id"]] = seen.get(row["id"], 0) + 1
        found[row["id"], seen[row["id"]]] = row
    return found


def fixed(runs: Runs) -> dict[int, Sequence[Row]]:
    """The runs at one budget each, ascending."""
    return {int(name): runs[name] for name in sorted((n for n in runs if n != AUTO), key=int)}


def choices(runs: Mapping[int, Sequence[Row]]) -> list[int]:
    """Per question the smallest budget that answers best.

    For scores of 0 and 1 that is the smallest that answers right, and the smallest of all where
    none does; a graded score (an overlap of boxes) counts as right where no budget does better.
    """
    budgets = sorted(runs)
    found = []
    for rows in zip(*(runs[budget] for budget in budgets), strict=True):
        best = max(row["score"] for row in rows)
        found.append(next(b for b, row in zip(budgets, rows, strict=True) if row["score"] == best))
    return found


def point(
    choice: str, rows: Sequence[Row], *, full: Sequence[Row], seconds: float | None = None
) -> dict[str, Any]:
    """One point of the curve.

    visual_tokens: mean over questions, of the answer's pictures; spent: of all tries together;
    against_full: mean difference of scores to the largest budget, question by question.
    """
    scores = [float(row["score"]) for row in rows]
    gaps = [a - float(row["score"]) for a, row in zip(scores, full, strict=True)]
    return {
        "choice": choice,
        "visual_tokens": mean([float(row["visual_tokens_total"]) for row in rows]),
        "spent": mean([float(row["visual_tokens_spent"]) for row in rows]),
        "score": mean(scores),
        "stderr": stderr(scores),
        "against_full": mean(gaps),
        "against_full_stderr": stderr(gaps),
        "seconds_per_question": seconds,
        "tasks": {task: own["score"] for task, own in by_task(rows).items()},
    }


def compare(runs: Runs, *, seconds: Mapping[str, float | None] | None = None) -> dict[str, Any]:
    """The curve: `budgets` (fixed, ascending), `oracle` with how often it chose which, `auto`.

    seconds: run -> mean wall time of a question. Only questions answered in every run count.
    """
    runs, seconds = shared(runs), seconds or {}
    curve = fixed(runs)
    full = curve[max(curve)]
    chosen = choices(curve)
    best = [curve[budget][number] for number, budget in enumerate(chosen)]
    found: dict[str, Any] = {
        "questions": len(full),
        "budgets": [
            point(str(budget), rows, full=full, seconds=seconds.get(str(budget)))
            for budget, rows in curve.items()
        ],
        "oracle": {
            **point("oracle", best, full=full),
            "chosen": {str(budget): chosen.count(budget) for budget in curve},
        },
    }
    if AUTO in runs:
        rows = runs[AUTO]
        taken = [row["visual_tokens"] for row in rows]
        found["auto"] = {
            **point(AUTO, rows, full=full, seconds=seconds.get(AUTO)),
            "chosen": {str(budget): taken.count(budget) for budget in curve if budget in taken},
        }
    return found


def differences(runs: Runs, others: Runs) -> list[dict[str, Any]]:
    """How these runs differ from another model's at the same choice, question by question.

    difference: mean of score - other score over the questions that both answered; stderr: of it;
    low, high: its 95 % interval.
    """
    found = []
    for choice in (name for name in runs if name in others):
        both = shared({"own": runs[choice], "other": others[choice]})
        own = [float(row["score"]) for row in both["own"]]
        other = [float(row["score"]) for row in both["other"]]
        gaps = [a - b for a, b in zip(own, other, strict=True)]
        middle, spread = mean(gaps), stderr(gaps)
        found.append(
            {
                "choice": choice,
                "questions": len(gaps),
                "score": mean(own),
                "other": mean(other),
                "difference": middle,
                "stderr": spread,
                "low": middle - 1.96 * spread,
                "high": middle + 1.96 * spread,
            }
        )
    return found


def difference_table(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of `differences`."""
    keys = ("score", "other", "difference", "low", "high")
    header = ["visual tokens", "score", "other", "difference", "95 % from", "to"]
    return header, [[own["choice"], *(round(own[key], 4) for key in keys)] for own in found]


def points(comparison: Mapping[str, Any], *, oracle: bool = True) -> list[Mapping[str, Any]]:
    """All points of a comparison in the order of a table."""
    more = [comparison["auto"]] if "auto" in comparison else []
    return [*comparison["budgets"], *more, *([comparison["oracle"]] if oracle else [])]


def table(
    comparison: Mapping[str, Any], *, oracle: bool = True
) -> tuple[list[str], list[list[Any]]]:
    """(header, rows) of the human table."""
    header = ["visual tokens", "score", "±", "against full", "±", "mean tokens", "all tries", "s"]
    lines = [
        [
            own["choice"],
            *(round(own[key], 4) for key in COLUMNS[3:7]),
            *(round(own[key], 1) for key in COLUMNS[1:3]),
            "" if own["seconds_per_question"] is None else round(own["seconds_per_question"], 4),
        ]
        for own in points(comparison, oracle=oracle)
    ]
    return header, lines


def curve_csv(comparison: Mapping[str, Any]) -> str:
    """One line per point: the columns of COLUMNS."""
    return _csv(COLUMNS, [[own[key] for key in COLUMNS] for own in points(comparison)])


def items_csv(runs: Runs) -> str:
    """One line per question: the oracle's choice, then the score of every run."""
    runs = shared(runs)
    chosen = choices(fixed(runs))
    first = next(iter(runs.values()))
    lines = [
        [row["id"], row["task"], budget, *(own[number]["score"] for own in runs.values())]
        for number, (row, budget) in enumerate(zip(first, chosen, strict=True))
    ]
    return _csv(["id", "task", "oracle", *runs], lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()
