"""QA: one question about a picture, and the few words that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from retinue.media import boxes
from retinue.media.boxes import Shape
from retinue.world.options import WorldOptions
from retinue.world.scene import Scene

BRIEFLY = "\nAnswer the question using a single word or phrase."
"""LLaVA-1.5's prompt for short answers."""
VOWELS = "aeiouAEFHLMNRSX8"
"""What is said with a vowel at its beginning, of words and of letters that stand alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QA:
    """A question with its answer.

    references: every answer that counts as right, the trained one among them
    scorer: name in the table of retinue.eval.scorers
    scenes: the pictures asked about, in order, where they are not just the scene itself; they stand
        before the question, or where it has `<image>`
    shots: turns that come before it, each about a picture of its own
    moving: those are the frames of one video
    about: names of the objects that question and answer together describe
    """

    task: str
    question: str
    answer: str
    scorer: str
    references: tuple[str, ...] = ()
    scenes: tuple[Scene, ...] = ()
    shots: tuple[QA, ...] = ()
    moving: bool = False
    about: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> tuple[str, ...]:
        """The references, or the answer alone."""
        return self.references or (self.answer,)


class Task(Protocol):
    """A task: every question of its kind that the scene answers without ambiguity."""

    def __call__(self, scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]: ...


def ask(short: str, *, options: WorldOptions, llava: str | None = None) -> str:
    """The prompt in the chosen wording; without its own LLaVA form, the short one + `BRIEFLY`."""
    if options.prompts == "short":
        return short
    return short + BRIEFLY if llava is None else llava


def an(noun: str) -> str:
    """`a red square`, `an orange star`, `an A`."""
    return f"{'an' if noun[0] in VOWELS else 'a'} {noun}"


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def place_phrase(place: str) -> str:
    """`at the top left`."""
    return f"at the {place}"


def box_text(*shapes: Shape, scene: Scene, options: WorldOptions) -> str:
    """Pixel boxes or points as the options write them."""
    return boxes.write(shapes, size=scene.size, style=options.boxes)
