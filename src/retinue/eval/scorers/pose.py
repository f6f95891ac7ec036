"""Scorer of poses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retinue.eval.scorers.base import bad_reference, best
from retinue.media import boxes

SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072,
    "wrist": 0.062, "hip": 0.107, "knee": 0.087, "ankle": 0.089,
}  # fmt: skip
"""COCO's spread of human annotations per joint, in units of the square root of the area."""

AREA = 0.53
"""A person's area over that of the box of the joints: text carries no segment to measure."""


def oks(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Object keypoint similarity: mean over joints of exp(-d^2 / (2 s^2 (2 sigma)^2)).

    As in COCO's keypoint task (https://cocodataset.org), with s^2 = 0.53 x the area of the
    reference joints' box. A joint that the answer leaves out counts 0. `oks50`: whether the mean
    reaches 0.5.
    """
    found = boxes.parse_pose(prediction)

    def score(reference: str) -> dict[str, float]:
        wanted = {n: p for n, p in boxes.parse_pose(reference).items() if n in boxes.KEYPOINTS}
        if len(wanted) < 2:
            raise bad_reference(reference, lacks="two joints of COCO", scorer="oks")
        xs, ys = [x for x, _ in wanted.values()], [y for _, y in wanted.values()]
        area = AREA * (max(xs) - min(xs)) * (max(ys) - min(ys))
        if area <= 0:
            raise bad_reference(reference, lacks="pose with width and height", scorer="oks")
        total = 0.0
        for name, (x, y) in wanted.items():
            if name in found:
                spread = 2 * SIGMAS[name.rpartition("_")[2]]
                distance = (found[name][0] - x) ** 2 + (found[name][1] - y) ** 2
                total += math.exp(-distance / (2 * area * spread**2))
        mean = total / len(wanted)
        return {"oks": mean, "oks50": float(mean >= 0.5)}

    return best(references, score)
