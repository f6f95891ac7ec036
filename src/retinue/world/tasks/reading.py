"""OCR: what a rendered word says, where the words stand, and where one of them does."""

from __future__ import annotations

from random import Random

from retinue.world.options import WorldOptions
from retinue.world.scene import Scene
from retinue.world.tasks.base import QA, ask, box_text
from retinue.world.tasks.grounding import box_of

OCR_PROMPT = "Please detect all texts and provide their bounding box coordinate."


def ocr(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The letters of a word; where there are several, it is named by its colour."""
    return [
        QA(
            task="ocr",
            question=ask(
                "What does the text say?"
                if len(scene.words) == 1
                else f"What does the {word.colour} text say?",
                options=options,
            ),
            answer=word.text,
            scorer="text",
        )
        for word in scene.words
    ]


def ocr_boxes(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Every word with its box."""
    if not scene.words:
        return []
    return [
        QA(
            task="ocr_boxes",
            question=ask("Find all text.", options=options, llava=OCR_PROMPT),
            answer=" ".join(
                f"<p>{word.text}</p>{box_text(word.box, scene=scene, options=options)}"
                for word in scene.words
            ),
            scorer="grounded",
        )
    ]


def rec_text(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """The box of a word that is named by what it says; none where two words say the same."""
    said = [word.text for word in scene.words]
    return [
        box_of(f"text {word.text}", word.box, task="rec_text", scene=scene, options=options)
        for word in scene.words
        if said.count(word.text) == 1
    ]
