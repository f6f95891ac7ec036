"""Stick figures: thirteen of COCO's joints in a box of width and height 1, seen from the front.

The person's left is the picture's right. Directions come from a table, so that no platform's
trigonometry can change a scene.
"""

from __future__ import annotations

from random import Random

from retinue.media.boxes import Point

ARMS: tuple[tuple[Point, Point], ...] = (
    ((0.08, 0.14), (0.04, 0.14)),  # hanging: shoulder -> elbow, elbow -> wrist
    ((0.16, 0.0), (0.14, 0.0)),  # stretched out
    ((0.14, 0.08), (0.04, -0.15)),  # hand up
    ((0.10, -0.12), (0.06, -0.14)),  # raised
    ((0.15, 0.09), (-0.11, 0.08)),  # hand on the hip
)
LEGS: tuple[tuple[Point, Point], ...] = (
    ((0.02, 0.19), (0.02, 0.19)),  # standing
    ((0.12, 0.16), (0.10, 0.16)),  # apart
    ((0.16, 0.06), (0.0, 0.18)),  # knee up
)


def sample_joints(rng: Random) -> list[tuple[str, Point]]:
    """Thirteen (name, (x, y)) pairs in 0..1 of the figure's cells, each limb posed by itself."""
    sway = 0.06 * (rng.random() - 0.5)
    joints: dict[str, Point] = {"nose": (0.5 + sway, 0.14)}
    for side, sign in (("left", 1), ("right", -1)):
        shoulder, hip = (0.5 + sign * 0.14, 0.32), (0.5 + sign * 0.09, 0.57)
        elbow_by, wrist_by = rng.choice(ARMS)
        knee_by, ankle_by = rng.choice(LEGS)
        elbow, knee = _add(shoulder, elbow_by, sign=sign), _add(hip, knee_by, sign=sign)
        joints[f"{side}_shoulder"], joints[f"{side}_hip"] = shoulder, hip
        joints[f"{side}_elbow"], joints[f"{side}_knee"] = elbow, knee
        joints[f"{side}_wrist"] = _add(elbow, wrist_by, sign=sign)
        joints[f"{side}_ankle"] = _add(knee, ankle_by, sign=sign)
    order = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    names = ["nose", *(f"{side}_{part}" for part in order for side in ("left", "right"))]
    return [(name, joints[name]) for name in names]


def _add(point: Point, step: Point, *, sign: int) -> Point:
    return point[0] + sign * step[0], point[1] + step[1]
