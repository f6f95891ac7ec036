"""Questions about several pictures."""

from __future__ import annotations

from random import Random

from retinue.world.options import WorldOptions
from retinue.world.scene import Scene, sample_scene
from retinue.world.tasks.base import QA, an, ask


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
    return [
        QA(
            task="multi_image",
            question=ask(f"Which picture has {an(rng.choice(names))}?", options=options),
            answer=str(target + 1),
            scorer="number",
            scenes=tuple(scenes),
        )
    ]
