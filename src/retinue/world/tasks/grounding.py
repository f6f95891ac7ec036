"""Boxes: REC (words to a box), REG (a box to words), DET (all boxes of a kind)."""

from __future__ import annotations

from random import Random

from retinue.media.boxes import Box
from retinue.world.options import WorldOptions
from retinue.world.scene import RELATIONS, Scene, Thing, holds
from retinue.world.tasks.base import QA, ask, box_text, plural

REC_PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}."
REG_PROMPT = "Please provide a short description for this region: {}."
DET_PROMPT = "Detect all {} shown in the image."


def rec(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The box of a named object, in the chosen style of coordinates."""
    return [_thing("rec", thing.name, thing, scene, options) for thing in scene.things]


def rec_relation(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The box of the one object that stands in a relation to a named one."""
    questions = []
    for other in scene.things:
        for word in RELATIONS:
            found = [t for t in scene.things if holds(t, relation=word, other=other)]
            if len(found) == 1:
                name = f"object {word} the {other.name}"
                questions.append(_thing("rec_relation", name, found[0], scene, options))
    return questions


def _thing(task: str, name: str, thing: Thing, scene: Scene, options: WorldOptions) -> QA:
    place = f"{thing.place} " if options.place_first else ""
    return box_of(name, thing.box, task=task, scene=scene, options=options, place=place)


def box_of(
    name: str, box: Box, *, task: str, scene: Scene, options: WorldOptions, place: str = ""
) -> QA:
    """Where the one thing of that name is; place: what the answer says before its box."""
    return QA(
        task=task,
        question=ask(f"Find the {name}.", options=options, llava=REC_PROMPT.format(f"the {name}")),
        answer=place + box_text(box, scene=scene, options=options),
        scorer="iou",
        about=(name,),
        meta={"box": list(box)},
    )


def reg(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """What the box holds: colour and shape, with or without the size."""
    questions = []
    for thing in scene.things:
        region = box_text(thing.box, scene=scene, options=options)
        questions.append(
            QA(
                task="reg",
                question=ask(
                    f"What is at {region}?", options=options, llava=REG_PROMPT.format(region)
                ),
                answer=thing.name,
                references=(thing.name, f"{thing.size} {thing.name}"),
                scorer="exact",
            )
        )
    return questions


def det(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """All boxes of everything, of a colour, of a shape, or of people, in reading order."""
    kinds: dict[str, list[Box]] = {"objects": [thing.box for thing in scene.things]}
    for thing in scene.things:
        kinds[f"{thing.colour} objects"] = [t.box for t in scene.having(colour=thing.colour)]
        kinds[plural(thing.shape)] = [t.box for t in scene.having(shape=thing.shape)]
    if scene.figures:
        kinds["people"] = [figure.box for figure in scene.figures]
    return [
        QA(
            task="det",
            question=ask(f"Find all {kind}.", options=options, llava=DET_PROMPT.format(kind)),
            answer=box_text(*found, scene=scene, options=options),
            scorer="det",
            meta={"boxes": [list(box) for box in found]},
        )
        for kind, found in kinds.items()
        if found
    ]
