"""What answers without looking reach: the floor under every figure about TinyWorld."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from retinue.media import boxes


def majority_baseline(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Task -> score of the best constant answer, and `all`, its mean over every row.

    The share of the most frequent answer; for tasks scored by IoU the mean IoU of the mean box.
    `rows` are evaluation rows with `task`, `answer` and `scorer`.
    """
    answers: dict[str, list[str]] = defaultdict(list)
    scorers: dict[str, str] = {}
    for row in rows:
        answers[row["task"]].append(row["answer"])
        scorers[row["task"]] = row["scorer"]
    scores = {
        task: _mean_box(given) if scorers[task] == "iou" else _most_frequent(given)
        for task, given in sorted(answers.items())
    }
    total = sum(len(given) for given in answers.values())
    if total:
        scores["all"] = sum(scores[task] * len(given) for task, given in answers.items()) / total
    return scores


def _most_frequent(answers: list[str]) -> float:
    return Counter(answers).most_common(1)[0][1] / len(answers)


def _mean_box(answers: list[str]) -> float:
    found = [boxes.parse_boxes(answer)[0] for answer in answers]
    mean = [sum(box[side] for box in found) / len(found) for side in range(4)]
    return sum(boxes.iou(mean, box) for box in found) / len(found)
