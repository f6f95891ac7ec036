"""Captions: short, dense (every attribute), grounded (with boxes), and object by object."""

from __future__ import annotations

from random import Random

from retinue.world.options import WorldOptions
from retinue.world.scene import Scene, Thing
from retinue.world.tasks.base import QA, an, ask, box_text, place_phrase

SHORT_PROMPT = "Provide a one-sentence caption for the provided image."
DENSE_PROMPT = "Generate a detailed description about the image."
GROUNDED_PROMPT = (
    "Describe the image concisely. Include the bounding box for each mentioned object."
)
INVENTORY_PROMPT = "Go through the objects."
EMPTY = "an empty picture"


def caption(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """`a red square, a blue ring and a green star`."""
    return [
        QA(
            task="caption",
            question=ask("Caption the picture.", options=options, llava=SHORT_PROMPT),
            answer=_listed([an(thing.name) for thing in scene.things], last=" and "),
            scorer="caption",
        )
    ]


def caption_dense(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """`a large red square at the top left, a small blue ring at the center`, words, people."""
    parts = [
        f"{an(f'{thing.size} {thing.name}')} {place_phrase(thing.place)}" for thing in scene.things
    ]
    parts += [f"the {word.colour} text {word.text}" for word in scene.words]
    parts += ["a person"] * len(scene.figures)
    return [
        QA(
            task="caption_dense",
            question=ask("Describe the picture.", options=options, llava=DENSE_PROMPT),
            answer=_listed(parts, last=", "),
            scorer="caption",
        )
    ]


def caption_grounded(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """`<p>red square</p>[box] <p>blue ring</p>[box]`."""
    if not scene.things:
        return []
    return [
        QA(
            task="caption_grounded",
            question=ask("Describe with boxes.", options=options, llava=GROUNDED_PROMPT),
            answer=" ".join(
                f"<p>{thing.name}</p>{box_text(thing.box, scene=scene, options=options)}"
                for thing in scene.things
            ),
            scorer="grounded",
        )
    ]


def inventory(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Each object once, in any order, named by one attribute and then told by the others.

    `the star is purple at the left, the red object is a small ring`: every phrase is a question
    and its answer, so one picture teaches many look-ups of the object that words name.
    """
    things = rng.sample(scene.things, len(scene.things))
    return [
        QA(
            task="inventory",
            question=ask(INVENTORY_PROMPT, options=options),
            answer=", ".join(_told(thing, scene=scene, rng=rng) for thing in things) or EMPTY,
            scorer="caption",
            about=tuple(thing.name for thing in things),
        )
    ]


def _told(thing: Thing, *, scene: Scene, rng: Random) -> str:
    """`the star is purple at the left`; the name is one that fits no other object."""
    place = place_phrase(thing.place)
    ways = [
        f"the object {place} is {an(thing.name)}",
        f"the {thing.name} is {thing.size} {place}",
    ]
    if len(scene.having(shape=thing.shape)) == 1:
        ways += [f"the {thing.shape} is {thing.colour} {place}"] * 2
    if len(scene.having(colour=thing.colour)) == 1:
        ways += [f"the {thing.colour} object is {an(thing.shape)} {place}"] * 2
    return rng.choice(ways)


def _listed(parts: list[str], *, last: str) -> str:
    if len(parts) < 2:
        return parts[0] if parts else EMPTY
    return ", ".join(parts[:-1]) + last + parts[-1]
