"""Yes-or-no questions, one of each answer per picture: existence and relations."""

from __future__ import annotations

from random import Random

from retinue.world.options import COLOURS, WorldOptions
from retinue.world.scene import RELATIONS, Scene, holds
from retinue.world.tasks.base import QA, an, ask


def exist(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Is there such an object? The absent ones share colour or shape with present ones."""
    if not scene.things:
        return []
    names = [thing.name for thing in scene.things]
    absent = sorted(set(_near_misses(scene, rng=rng, options=options)) - set(names))
    if not absent:
        return []
    asked = (("yes", rng.choice(names)), ("no", rng.choice(absent)))
    return [
        QA(
            task="exist",
            question=ask(f"Is there {an(name)}?", options=options),
            answer=answer,
            scorer="exact",
            about=(name,) if answer == "yes" else (),
        )
        for answer, name in asked
    ]


def _near_misses(scene: Scene, *, rng: Random, options: WorldOptions) -> list[str]:
    """A quarter each: colour and shape of two objects swapped, other colour, other shape, any."""
    shapes, colours = options.known_shapes, list(COLOURS)[: options.colours]
    one, other = rng.choice(scene.things), rng.choice(scene.things)
    kinds = (
        [f"{one.colour} {other.shape}", f"{other.colour} {one.shape}"],
        [f"{colour} {one.shape}" for colour in colours],
        [f"{one.colour} {shape}" for shape in shapes],
        [f"{rng.choice(colours)} {rng.choice(shapes)}"],
    )
    names = {thing.name for thing in scene.things}
    picked = [name for name in rng.choice(kinds) if name not in names]
    return picked or [name for kind in kinds for name in kind]


def relation(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Is one object left of, right of, above or below another?"""
    pairs = [(a, r, b) for a in scene.things for b in scene.things if a != b for r in RELATIONS]
    questions = []
    for answer, wanted in (("yes", True), ("no", False)):
        fitting = [(a, r, b) for a, r, b in pairs if holds(a, relation=r, other=b) == wanted]
        if fitting:
            one, word, other = rng.choice(fitting)
            questions.append(
                QA(
                    task="relation",
                    question=ask(f"Is the {one.name} {word} the {other.name}?", options=options),
                    answer=answer,
                    scorer="exact",
                )
            )
    return questions
