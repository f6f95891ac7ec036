"""REL DET: all relations between the objects as triples."""

from __future__ import annotations

from random import Random

from retinue.world.options import WorldOptions
from retinue.world.scene import Scene
from retinue.world.tasks.base import QA, ask


def reldet(scene: Scene, *, rng: Random, options: WorldOptions) -> list[QA]:
    """`red square left of blue ring; ...`; only `left of` and `above`, which imply the others."""
    triples = [
        f"{one.name} {word} {other.name}"
        for one, word, other in scene.relations
        if word in ("left of", "above")
    ]
    if not triples:
        return []
    return [
        QA(
            task="reldet",
            question=ask(
                "List what is left of or above what.",
                options=options,
                llava="Detect the relations left of and above between the objects in the image.",
            ),
            answer="; ".join(triples),
            scorer="relations",
        )
    ]
