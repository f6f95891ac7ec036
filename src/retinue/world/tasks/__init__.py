"""The table of TinyWorld's tasks, and the choice of a picture's questions among them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from retinue.core.errors import ConfigError
from retinue.core.registry import Registry
from retinue.world.options import WorldOptions
from retinue.world.scene import Scene
from retinue.world.tasks.base import QA, Task

TASKS: Registry[Task] = Registry(
    "world_task",
    {
        "caption": "retinue.world.tasks.captions:caption",
        "caption_dense": "retinue.world.tasks.captions:caption_dense",
        "caption_grounded": "retinue.world.tasks.captions:caption_grounded",
        "inventory": "retinue.world.tasks.captions:inventory",
        "colour": "retinue.world.tasks.attributes:colour",
        "shape": "retinue.world.tasks.attributes:shape",
        "size": "retinue.world.tasks.attributes:size",
        "place": "retinue.world.tasks.attributes:place",
        "exist": "retinue.world.tasks.judgements:exist",
        "relation": "retinue.world.tasks.judgements:relation",
        "count": "retinue.world.tasks.count:count",
        "count_of": "retinue.world.tasks.count:count_of",
        "rec": "retinue.world.tasks.grounding:rec",
        "rec_relation": "retinue.world.tasks.grounding:rec_relation",
        "reg": "retinue.world.tasks.grounding:reg",
        "det": "retinue.world.tasks.grounding:det",
        "ocr": "retinue.world.tasks.reading:ocr",
        "ocr_boxes": "retinue.world.tasks.reading:ocr_boxes",
        "rec_text": "retinue.world.tasks.reading:rec_text",
        "pose": "retinue.world.tasks.pose:pose",
        "reldet": "retinue.world.tasks.reldet:reldet",
        "multi_image": "retinue.world.tasks.several:multi_image",
        "naming": "retinue.world.tasks.several:naming",
        "called": "retinue.world.tasks.several:called",
        "video": "retinue.world.tasks.video:video",
    },
)

QUICK = ("caption_dense", "colour", "shape", "place", "exist", "count", "rec")
"""What the quickstart trains: dense captions first, VQA, counting and REC."""

FIRST = "caption_dense"
_NEEDS = {"ocr": "words", "ocr_boxes": "words", "rec_text": "words", "pose": "figures"}
_OF_SHAPES = ("naming", "called")


def check_tasks(names: Sequence[str], *, options: WorldOptions) -> None:
    """Raise ConfigError for an unknown task, or one whose pictures cannot hold what it asks for."""
    if not names:
        raise ConfigError("no task is chosen", where="tasks", fix=f"choose of {TASKS.names()}")
    for name in names:
        if name not in TASKS:
            raise ConfigError(TASKS.unknown(name), where="tasks")
        need = _NEEDS.get(name)
        if need and not getattr(options, need):
            raise ConfigError(
                f"task {name!r} asks about {need}, but the pictures hold none",
                where="tasks",
                fix=f"set world.{need}: 1",
            )
        if name in _OF_SHAPES and options.objects != "shapes":
            raise ConfigError(
                f"task {name!r} gives shapes names, but the objects are {options.objects}",
                where="tasks",
                fix="leave world.objects: shapes",
            )


def choose_turns(
    scene: Scene,
    *,
    rng: Random,
    tasks: Sequence[str],
    turns: int,
    options: WorldOptions,
    caption_first: bool = True,
    apart: bool = False,
    alone: float | None = None,
) -> list[QA]:
    """At most `turns` different questions, spread evenly over the tasks.

    apart: no two of them, captions aside, are about the same object, so that a conversation never
    holds the answer to a later question of its own. alone: with this chance the dense caption,
    where it is a task, is the only turn, else it is none.

    The dense caption, where it is a task, always has a turn: the first, or the last, so that no
    answer can be copied from it.
    """
    piles: list[list[QA]] = []
    for name in tasks:
        pile = TASKS.get(name)(scene, rng=rng, options=options)
        rng.shuffle(pile)
        piles.append(pile)
    first = [qa for pile in piles for qa in pile if qa.task == FIRST][:turns]
    if first and alone is not None:
        if rng.random() < alone:
            return first
        first = []
    piles = [pile for pile in piles if pile and pile[0].task != FIRST]
    rng.shuffle(piles)
    chosen: list[QA] = []
    told: set[str] = set()
    while piles and len(chosen) < turns - len(first):
        for pile in piles[: turns - len(first) - len(chosen)]:
            qa = pile.pop()
            if not (apart and told & set(qa.about)):
                chosen.append(qa)
                told |= set(qa.about)
        piles = [pile for pile in piles if pile]
    return first + chosen if caption_first else chosen + first
