"""Video: an object that moves over some frames."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from retinue.world.options import WorldOptions
from retinue.world.scene import Cell, Scene, Thing
from retinue.world.tasks.base import QA, ask

FRAMES = 6
"""IG-VLM's six-frame grid takes exactly as many."""
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
}


def video(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The direction in which one object crosses the picture; what stands in its way is left out."""
    if not scene.things:
        return []
    thing, direction = rng.choice(scene.things), rng.choice(sorted(DIRECTIONS))
    return [
        QA(
            task="video",
            question=ask(f"Which way does the {thing.name} move?", options=options),
            answer=direction,
            scorer="exact",
            scenes=film(scene, thing=thing, direction=direction),
            moving=True,
            meta={"frames": FRAMES},
        )
    ]


def film(scene: Scene, *, thing: Thing, direction: str, frames: int = FRAMES) -> tuple[Scene, ...]:
    """Frames in which `thing` crosses its row or column from one side to the other."""
    down, right = DIRECTIONS[direction]
    step = (2 * down, 2 * right)
    start: Cell = (
        thing.cell[0] if down == 0 else 1 - down,
        thing.cell[1] if right == 0 else 1 - right,
    )
    resting = tuple(
        other
        for other in scene.things
        if other != thing
        and (other.cell[0] != start[0] if down == 0 else other.cell[1] != start[1])
    )
    pictures = []
    for index in range(frames):
        done = index / (frames - 1)
        row, column = start[0] + done * step[0], start[1] + done * step[1]
        moved = _at(thing, row=row, column=column, size=scene.size)
        things = tuple(sorted((*resting, moved), key=lambda thing: thing.cell))
        pictures.append(replace(scene, things=things, words=(), figures=()))
    return tuple(pictures)


def _at(thing: Thing, *, row: float, column: float, size: tuple[int, int]) -> Thing:
    """The thing shifted to a (fractional) row and column, its place within the cell kept."""
    x = (column - thing.cell[1]) * size[1] / 3
    y = (row - thing.cell[0]) * size[0] / 3
    x1, y1, x2, y2 = thing.box
    box = (round(x1 + x, 2), round(y1 + y, 2), round(x2 + x, 2), round(y2 + y, 2))
    return replace(thing, cell=(round(row), round(column)), box=box)
