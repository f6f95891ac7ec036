"""What the quickstart needs of TinyWorld: splits on disk, a vocabulary, a fresh picture, a look."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from retinue.core.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from retinue.text.tokenizer import Tokenizer
    from retinue.world.make import Film, Told
    from retinue.world.options import WorldOptions

SIDE = 72
TURNS = 6
VOCABULARY = 512
ALONE = 0.35
"""Share of the pictures of every kind that are described; the others are asked about."""
TOLD, LOOKING = 0.58, 0.12
"""Shares of training pictures, of several objects: told object by object; asked about one each."""
LOOKED_UP, REPEATED = ("colour", "shape", "exist"), 0.6
"""What is asked about one each, and how often looks repeat there: then places name the object."""
MARK = re.compile(r"<(image|video)>\n")
SAMPLE = 4000
"""Records whose text is enough to learn the vocabulary from."""
LOOKED = 20
"""Pictures looked at, at most, for each question that is wanted."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """A picture that nobody has seen, with questions and what is true."""

    picture: Image
    turns: list[tuple[str, str]]


def world_options() -> WorldOptions:
    """The pictures of the quickstart: 1-4 objects of 5 shapes and 6 colours at 9 places."""
    from retinue.world.options import WorldOptions

    return WorldOptions(
        size=(SIDE, SIDE),
        shapes=5,
        colours=6,
        small=0.72,
        jitter=0.4,
        repeat=0.1,
        place_first=True,
    )


def make_data(
    folder: Path,
    *,
    pictures: int,
    questions: int,
    seed: int,
    progress: Progress,
    options: WorldOptions | None = None,
    tasks: Sequence[str] | None = None,
    turns: int = TURNS,
    film: Film = "frames",
    told: Told | None = None,
) -> tuple[Path, Path]:
    """Write train.json and test.jsonl (at least `questions` rows) unless they are there already.

    told: also train.told.json, the same conversations with captions in the place of pictures.

    Raises ConfigError for tasks that the pictures cannot hold, EnvError where the disk refuses.
    """
    from retinue.world.make import write_split
    from retinue.world.tasks import QUICK

    options, tasks = options or world_options(), QUICK if tasks is None else tasks
    asked = pictures_asked(questions, seed=seed, options=options, tasks=tasks, turns=turns)
    mark = folder / "made.json"
    facts = {"pictures": pictures, "asked": asked, "seed": seed, "options": options.model_dump()}
    shares = [ALONE, TOLD, LOOKING, REPEATED]
    facts = json.loads(json.dumps({**facts, "turns": turns, "shares": shares, "tasks": [*tasks]}))
    facts |= {"film": film} if film != "frames" else {}
    facts |= {"told": told} if told else {}
    if mark.exists() and json.loads(mark.read_text("utf-8")) == facts:
        progress(pictures, pictures)
        return folder / "train.json", folder / "test.jsonl"
    common: dict[str, Any] = {
        "seed": seed,
        "options": options,
        "tasks": tasks,
        "turns_per_picture": turns,
        "caption_first": False,
        "film": film,
    }
    mark.unlink(missing_ok=True)
    draw_training(folder, pictures, {**common, "told": told}, progress=progress)
    write_split(folder, name="test", num_pictures=asked, **common)
    mark.write_text(json.dumps(facts), encoding="utf-8")
    return folder / "train.json", folder / "test.jsonl"


def draw_training(
    folder: Path, pictures: int, common: dict[str, Any], *, progress: Progress
) -> None:
    """Write train.json; for the quickstart's tasks with a share of inventories.

    An inventory names an object and then tells what it is, for every object: in questions alone, a
    small model needs thousands of updates to learn to look up what a question names. Turns stand
    `apart`: else answers could be copied from other turns, and the model need not look.
    """
    from retinue.world.make import write_split
    from retinue.world.tasks import QUICK

    options, quick = common["options"], tuple(common["tasks"]) == QUICK
    several = options.model_copy(update={"min_objects": max(2, options.min_objects)})
    parts = {"train": (1.0, options, common["tasks"])}
    if quick and options.max_objects > 1:
        parts = {
            "train": (1 - TOLD - LOOKING, options, common["tasks"]),
            "told": (TOLD, several, ("inventory",)),
            "look": (LOOKING, several.model_copy(update={"repeat": REPEATED}), LOOKED_UP),
        }
    records: list[Any] = []
    words: list[Any] = []

    def drawn(done: int, _: int) -> None:
        progress(min(len(records) + done, pictures), pictures)

    for name, (share, world, tasks) in parts.items():
        path = write_split(
            folder,
            name=name,
            num_pictures=max(1, round(pictures * share)),
            apart=True,
            alone=ALONE if quick else None,
            progress=drawn,
            **{**common, "options": world, "tasks": tasks},
        )
        records += json.loads(path.read_text("utf-8"))
        if common["told"]:
            words += json.loads(path.with_suffix(".told.json").read_text("utf-8"))
        if name != "train":
            for suffix in (".json", ".jsonl", ".told.json"):
                path.with_suffix(suffix).unlink(missing_ok=True)
    progress(pictures, pictures)
    if len(parts) > 1:
        Random(common["seed"]).shuffle(records)
        (folder / "train.json").write_text(json.dumps(records), encoding="utf-8")
        if common["told"]:
            (folder / "train.told.json").write_text(json.dumps(words), encoding="utf-8")


def pictures_asked(
    questions: int, *, seed: int, options: WorldOptions, tasks: Sequence[str], turns: int
) -> int:
    """How many test pictures hold `questions` questions, captions aside where others are asked."""
    from retinue.world.make import make_picture
    from retinue.world.tasks import check_tasks

    check_tasks(tasks, options=options)
    captions = all(task.startswith("caption") for task in tasks)
    found = 0
    for number in range(1, LOOKED * questions + 1):
        _, asked = make_picture(
            number - 1, name="test", seed=seed, options=options, tasks=tasks, turns=turns,
            caption_first=False,
        )  # fmt: skip
        found += sum(captions or not qa.task.startswith("caption") for qa in asked)
        if found >= questions:
            return number
    raise ConfigError(
        f"{found} questions in {number} pictures",
        where=f"tasks {', '.join(tasks)}",
        rule=f"{questions} are wanted",
        fix="choose other tasks, or let the pictures hold more (max_objects)",
    )


def make_tokenizer(train: Path, *, vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE over the words of the training conversations."""
    from retinue.text.train import train_bpe

    return train_bpe(words_of(train), vocab_size=vocabulary)


def words_of(train: Path) -> Iterator[str]:
    """The turns as the template will write them, so that its words become tokens too."""
    for record in json.loads(train.read_text("utf-8"))[:SAMPLE]:
        values = [MARK.sub("", turn["value"]) for turn in record["conversations"]]
        for question, answer in zip(values[::2], values[1::2], strict=True):
            yield f" USER: {question} ASSISTANT: {answer}"


def fresh_picture(*, seed: int) -> Fresh:
    """A picture of neither split, and a few questions about it."""
    from retinue.world.draw import draw_scene
    from retinue.world.make import make_picture

    options = world_options()
    scene, turns = make_picture(0, name="fresh", seed=seed, options=options, turns=TURNS)
    asked = [(qa.question, qa.answer) for qa in turns]
    return Fresh(picture=draw_scene(scene), turns=asked)


def look(picture: Image, *, columns: int = 36) -> str:
    """The picture in coloured half blocks for a terminal, "" where colours cannot be shown."""
    import os

    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return ""
    rows = max(2, round(columns * picture.height / picture.width / 2) * 2)
    pixels = picture.resize((columns, rows)).convert("RGB").load()
    assert pixels is not None
    lines = []
    for row in range(0, rows, 2):
        cells = []
        for column in range(columns):
            top: Any = pixels[column, row]
            low: Any = pixels[column, row + 1]
            cells.append(
                f"\x1b[38;2;{top[0]};{top[1]};{top[2]}m\x1b[48;2;{low[0]};{low[1]};{low[2]}m▀"
            )
        lines.append("  " + "".join(cells) + "\x1b[0m")
    return "\n".join(lines)
