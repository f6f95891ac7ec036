"""Outlines of the shapes as polygons of the unit square; each touches all four sides.

x to the right, y down. A ring is its outer circle; the hole is `RING_HOLE` of the diameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from retinue.media.boxes import Point

RING_HOLE = 0.5
_THIRD = 0.32  # half-open arm of the cross: arms are 36 % of the width


def _fit(points: Sequence[Point]) -> tuple[Point, ...]:
    """Stretch points so that they touch all sides of the unit square: the box is then exact."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top = min(xs), min(ys)
    width, height = max(xs) - left, max(ys) - top
    return tuple(((x - left) / width, (y - top) / height) for x, y in points)


def _circle(*, steps: int = 48) -> tuple[Point, ...]:
    angles = [2 * math.pi * k / steps for k in range(steps)]
    return _fit([(math.cos(a), math.sin(a)) for a in angles])


def _star() -> tuple[Point, ...]:
    spokes = [(1.0 if k % 2 == 0 else 0.42, math.pi * k / 5 - math.pi / 2) for k in range(10)]
    return _fit([(r * math.cos(a), r * math.sin(a)) for r, a in spokes])


def _heart(*, steps: int = 48) -> tuple[Point, ...]:
    angles = [2 * math.pi * k / steps for k in range(steps)]
    return _fit(
        [
            (
                16 * math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)),
            )
            for a in angles
        ]
    )


def _moon(*, steps: int = 24) -> tuple[Point, ...]:
    """A crescent open to the right: an outer arc and a flatter inner one."""
    reach = 0.72 * math.pi
    outer = [math.pi - reach + 2 * reach * k / steps for k in range(steps + 1)]
    arc = [(math.cos(a), math.sin(a)) for a in outer]
    tip_x, tip_y = arc[-1]
    depth = tip_x + 0.35  # how far the inner arc bulges to the left of the tips
    inner = [-1 + 2 * k / steps for k in range(steps + 1)]
    back = [(tip_x - depth * math.sqrt(max(0.0, 1 - t * t)), tip_y * -t) for t in inner]
    return _fit([*arc, *back])


OUTLINES: dict[str, tuple[Point, ...]] = {
    "circle": _circle(),
    "square": ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": ((0.5, 0), (1, 1), (0, 1)),
    "cross": (
        (_THIRD, 0), (1 - _THIRD, 0), (1 - _THIRD, _THIRD), (1, _THIRD), (1, 1 - _THIRD),
        (1 - _THIRD, 1 - _THIRD), (1 - _THIRD, 1), (_THIRD, 1), (_THIRD, 1 - _THIRD),
        (0, 1 - _THIRD), (0, _THIRD), (_THIRD, _THIRD),
    ),
    "star": _star(),
    "ring": _circle(),
    "diamond": ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    "heart": _heart(),
    "moon": _moon(),
    "arrow": ((0, 0.3), (0.45, 0.3), (0.45, 0), (1, 0.5), (0.45, 1), (0.45, 0.7), (0, 0.7)),
}  # fmt: skip
