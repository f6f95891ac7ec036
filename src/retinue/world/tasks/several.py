"""Questions about several pictures: which of them, and what a new word means."""

from __future__ import annotations

from random import Random

from retinue.world.options import SHAPES, WorldOptions
from retinue.world.scene import Scene, sample_scene
from retinue.world.tasks.base import QA, an, ask

WORDS = ("dax", "wug", "toma", "blick", "fep", "zorp", "kiki", "mun", "gazz", "lorp")
"""Names that mean nothing; `called` gives each shape the one at its place among SHAPES."""

MOST_SHOTS = 4


def multi_image(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Which of two or three pictures holds an object that the others lack: its number from 1."""
    scenes = [scene, *(sample_scene(rng, options=options) for _ in range(rng.randint(1, 2)))]
    rng.shuffle(scenes)
    target = rng.randrange(len(scenes))
    elsewhere = {
        thing.name
        for index, other in enumerate(scenes)
        if index != target
        for thing in other.things
    }
    names = [thing.name for thing in scenes[target].things if thing.name not in elsewhere]
    if not names:
        return []
    question = ask(f"Which picture has {an(rng.choice(names))}?", options=options)
    if options.inline:
        marks = (f"\n{number}: <image>" for number in range(1, len(scenes) + 1))
        question += "".join(marks)
    return [
        QA(
            task="multi_image",
            question=question,
            answer=str(target + 1),
            scorer="number",
            scenes=tuple(scenes),
        )
    ]


def naming(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """What an object is called, where only the turns before tell: two shapes with new names.

    Each of the 2 to 4 turns before shows a picture of one object of either shape and calls it by
    the name that its shape has in this conversation alone.
    """
    shapes = rng.sample(options.shape_names, min(2, len(options.shape_names)))
    if len(shapes) < 2:
        return []
    names = dict(zip(shapes, rng.sample(WORDS, 2), strict=True))
    shown = shapes + [rng.choice(shapes) for _ in range(rng.randint(0, MOST_SHOTS - 2))]
    rng.shuffle(shown)
    *before, last = [
        _called(shape, name=names[shape], task="naming", rng=rng, options=options)
        for shape in [*shown, rng.choice(shapes)]
    ]
    return [
        QA(
            task=last.task,
            question=last.question,
            answer=last.answer,
            scorer=last.scorer,
            scenes=last.scenes,
            shots=tuple(before),
        )
    ]


def called(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The name, one for each shape, of an object by itself: what examples can teach."""
    shape = rng.choice(options.shape_names)
    name = WORDS[SHAPES.index(shape)]
    return [_called(shape, name=name, task="called", rng=rng, options=options)]


def _called(shape: str, *, name: str, task: str, rng: Random, options: WorldOptions) -> QA:
    first = SHAPES.index(shape)
    alone = options.model_copy(
        update={"min_objects": 1, "max_objects": 1, "skip_shapes": first, "shapes": first + 1}
    )
    return QA(
        task=task,
        question=ask("What is it called?", options=options),
        answer=name,
        scorer="exact",
        scenes=(sample_scene(rng, options=alone),),
    )
