"""POSE: the joints of a stick figure."""

from __future__ import annotations

from random import Random

from retinue.media import boxes
from retinue.world.options import WorldOptions
from retinue.world.scene import Scene
from retinue.world.tasks.base import QA, ask, box_text


def pose(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """Thirteen named joints of the person in a region."""
    questions = []
    for figure in scene.figures:
        region = box_text(figure.box, scene=scene, options=options)
        questions.append(
            QA(
                task="pose",
                question=ask(
                    f"Key points of the person at {region}?",
                    options=options,
                    llava=f"Detect the key points of the person in the region {region}.",
                ),
                answer=boxes.write_pose(
                    dict(figure.joints),
                    size=scene.size,
                    style=options.boxes,
                    tags=options.boxes != "compact",
                ),
                scorer="oks",
                meta={"joints": {name: list(point) for name, point in figure.joints}},
            )
        )
    return questions
