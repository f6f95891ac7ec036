"""VQA about one object: its colour, shape, size, place."""

from __future__ import annotations

from random import Random

from retinue.world.options import WorldOptions
from retinue.world.scene import Scene
from retinue.world.tasks.base import QA, ask, place_phrase


def colour(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The colour of an object named by its shape, or by its place where the shape is not unique."""
    return [
        QA(
            task="colour",
            question=ask(
                f"What color is the {thing.shape}?"
                if len(scene.having(shape=thing.shape)) == 1
                else f"What color is the object {place_phrase(thing.place)}?",
                options=options,
            ),
            answer=thing.colour,
            scorer="exact",
            about=(thing.name,),
        )
        for thing in scene.things
    ]


def shape(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The shape of an object named by its colour, or by its place where that is not unique."""
    return [
        QA(
            task="shape",
            question=ask(
                f"What shape is the {thing.colour} object?"
                if len(scene.having(colour=thing.colour)) == 1
                else f"What shape is the object {place_phrase(thing.place)}?",
                options=options,
            ),
            answer=thing.shape,
            scorer="exact",
            about=(thing.name,),
        )
        for thing in scene.things
    ]


def size(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Small or large."""
    return [
        QA(
            task="size",
            question=ask(f"Is the {thing.name} small or large?", options=options),
            answer=thing.size,
            scorer="exact",
            about=(thing.name,),
        )
        for thing in scene.things
    ]


def place(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Which of the nine places."""
    return [
        QA(
            task="place",
            question=ask(f"Where is the {thing.name}?", options=options),
            answer=thing.place,
            scorer="exact",
            about=(thing.name,),
        )
        for thing in scene.things
    ]
