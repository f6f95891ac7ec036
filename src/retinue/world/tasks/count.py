"""Counting: all objects, or those of a colour or a shape."""

from __future__ import annotations

from random import Random

from retinue.world.options import COLOURS, WorldOptions
from retinue.world.scene import Scene
from retinue.world.tasks.base import QA, ask, plural


def count(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The number of all objects."""
    return [
        QA(
            task="count",
            question=ask("How many objects are there?", options=options),
            answer=str(len(scene.things)),
            scorer="number",
        )
    ]


def count_of(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The number of objects of one colour or shape: one question for each number that occurs."""
    by_number: dict[int, list[str]] = {}
    for colour in list(COLOURS)[: options.colours]:
        number = len(scene.having(colour=colour))
        by_number.setdefault(number, []).append(f"{colour} objects")
    for shape in options.known_shapes:
        number = len(scene.having(shape=shape))
        by_number.setdefault(number, []).append(plural(shape))
    return [
        QA(
            task="count_of",
            question=ask(f"How many {rng.choice(nouns)} are there?", options=options),
            answer=str(number),
            scorer="number",
        )
        for number, nouns in sorted(by_number.items())
    ]
