"""Measures of yes-or-no benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.measures.plain import fact
from retinue.eval.scorers.base import mean
from retinue.eval.scorers.short import pope_answer

Row = Mapping[str, Any]
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def confusion(rows: Sequence[Row]) -> dict[str, int]:
    """Counts TP, FP, TN, FN of POPE's answers, `yes` being positive."""
    found = dict.fromkeys(("TP", "FP", "TN", "FN"), 0)
    for row in rows:
        said = pope_answer(row["text"]) == "yes"
        right = said == (row["references"][0] == "yes")
        found[("T" if right else "F") + ("P" if said else "N")] += 1
    return found


def binary(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the share of `yes`; 0 where one has no divisor."""
    counts = confusion(rows)
    hit, found = counts["TP"], counts["TP"] + counts["FP"]
    wanted = counts["TP"] + counts["FN"]
    precision = hit / found if found else 0.0
    recall = hit / wanted if wanted else 0.0
    both = precision + recall
    return {
        "f1": 2 * precision * recall / both if both else 0.0,
        "accuracy": (hit + counts["TN"]) / len(rows) if rows else 0.0,
        "precision": precision,
        "recall": recall,
        "yes_ratio": found / len(rows) if rows else 0.0,
    }


def pope(rows: Sequence[Row]) -> dict[str, float]:
    """F1 of `yes`, averaged over the categories, then the figures of each category.

    Source: POPE (arXiv 2305.10355); papers report the mean over random, popular, adversarial.
    """
    groups = by_category(rows)
    each = {name: binary(own) for name, own in groups.items()}
    found = {
        metric: mean([figures[metric] for figures in each.values()])
        for metric in ("f1", "accuracy", "precision", "recall", "yes_ratio")
    }
    for name, figures in each.items():
        found |= {f"{name}.{metric}": value for metric, value in figures.items()}
    return found


def mme(rows: Sequence[Row]) -> dict[str, float]:
    """Perception (of 2000), cognition (of 800), then accuracy + accuracy+ of each category.

    accuracy+ counts a picture when both of its questions are right. Source: MME (arXiv 2306.13394).
    """
    scores = {}
    for name, own in by_category(rows).items():
        pictures: dict[str, list[float]] = {}
        for row in own:
            picture = f"{fact(row, '_picture', row['id'])}#{row.get('_draw', 0)}"
            pictures.setdefault(picture, []).append(float(row["score"]))
        accuracy = mean([float(row["score"]) for row in own])
        plus = mean([min(both) for both in pictures.values()])
        scores[name] = 100 * (accuracy + plus)
    return {
        "perception": sum(scores.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(scores.get(name, 0.0) for name in COGNITION),
        **scores,
    }


def by_category(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their fact `category`, in alphabetical order."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: str(fact(row, "category", ""))):
        found.setdefault(str(fact(row, "category", "")), []).append(row)
    return found
