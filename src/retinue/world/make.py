"""Data sets of TinyWorld on disk: PNG files, LLaVA JSON to train on, JSONL rows to evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Literal

from retinue.core.errors import ConfigError, DataError, EnvError
from retinue.core.seed import stream_seed
from retinue.media.film import check_film, write_video
from retinue.world.baseline import majority_baseline
from retinue.world.draw import draw_scene
from retinue.world.options import WorldOptions
from retinue.world.scene import Scene, sample_scene
from retinue.world.tasks import QUICK, check_tasks, choose_turns
from retinue.world.tasks.base import QA
from retinue.world.tasks.captions import caption, caption_dense

__all__ = ["Row", "majority_baseline", "make_picture", "read_rows", "write_split"]

Row = dict[str, Any]
Progress = Callable[[int, int], None]
Film = Literal["frames", "mkv", "mp4"]
Told = Literal["short", "dense"]
CHUNK = 64
MARK = "<image>"
"""Where a picture stands in a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Training records, rows to evaluate, and the records in words alone."""

    records: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    told: list[Row] = field(default_factory=list)

    def add(self, other: Made) -> None:
        self.records.extend(other.records)
        self.rows.extend(other.rows)
        self.told.extend(other.told)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    folder: Path
    name: str
    seed: int
    options: WorldOptions
    tasks: tuple[str, ...]
    turns: int
    caption_first: bool
    apart: bool
    alone: float | None
    film: Film
    told: Told | None


def write_split(
    folder: Path | str,
    *,
    name: str,
    num_pictures: int,
    seed: int,
    options: WorldOptions | None = None,
    tasks: Sequence[str] = QUICK,
    turns_per_picture: int = 8,
    caption_first: bool = True,
    apart: bool = False,
    alone: float | None = None,
    film: Film = "frames",
    told: Told | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write a split and return `folder/name.json`; `folder/name.jsonl` stands beside it.

    name.json: LLaVA's list of {id, image, conversations} with up to `turns_per_picture` turns, the
    dense caption (if it is a task) first or last, and, `apart`, no two questions about one object
    (`alone`: a picture has its caption, with this chance, or its questions);
    questions about several pictures are records of their own whose `image` is a list, those about
    a video have `video`: a list of frames, or with `film` the path of a file (mkv: lossless, mp4:
    even sides); name.told.json, with `told`, is the same in words: pictures are captions.
    name.jsonl: one question a row, {id, messages, answer, references, task, scorer, meta}; a row
    about a new word has the turns before it. Pictures are `images/<id>.png`, paths relative to
    `folder`.
    Picture k depends on (seed, name, k, options, tasks, turns) alone, not on `workers` (processes;
    0 = this one). `progress(done, total)` is called as pictures are written.
    Raises ConfigError for tasks or numbers that cannot be, EnvError when the disk refuses.
    """
    if num_pictures < 1 or turns_per_picture < 1:
        raise ConfigError(
            f"num_pictures {num_pictures} and turns_per_picture {turns_per_picture}",
            where=f"split {name!r}",
            rule="both are at least 1",
        )
    options = options or WorldOptions()
    check_tasks(tasks, options=options)
    if film != "frames":
        check_film(film, options.size)
    folder = Path(folder)
    job = _Job(
        folder=folder,
        name=name,
        seed=seed,
        options=options,
        tasks=tuple(tasks),
        turns=turns_per_picture,
        caption_first=caption_first,
        apart=apart,
        alone=alone,
        film=film,
        told=told,
    )
    made = Made()
    starts = range(0, num_pictures, CHUNK)
    jobs = [(job, start, min(start + CHUNK, num_pictures)) for start in starts]
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn")) as pool:
            for index, part in enumerate((pool.map if workers else map)(_chunk, jobs)):
                made.add(part)
                if progress:
                    progress(jobs[index][2], num_pictures)
        if not made.rows:
            raise DataError(
                f"no picture of {num_pictures} has a question", where=f"split {name!r}",
                fix="choose other tasks, or more objects",
            )  # fmt: skip
        path = folder / f"{name}.json"
        path.write_text(json.dumps(made.records, indent=1) + "\n", "utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in made.rows)
        path.with_suffix(".jsonl").write_text(lines, "utf-8")
        if told:
            path.with_suffix(".told.json").write_text(json.dumps(made.told) + "\n", "utf-8")
    except OSError as error:
        raise EnvError(
            f"cannot write the split {name!r}", where=str(error.filename or folder),
            rule=error.strerror or str(error), fix="free some space or choose another folder",
        ) from error  # fmt: skip
    return path


def make_picture(
    index: int,
    *,
    name: str,
    seed: int,
    options: WorldOptions,
    tasks: Sequence[str] = QUICK,
    turns: int = 8,
    caption_first: bool = True,
    apart: bool = False,
    alone: float | None = None,
) -> tuple[Scene, list[QA]]:
    """Picture `index` of a split with its questions: a pure function of the arguments."""
    rng = Random(stream_seed(seed, "world", name, index))
    scene = sample_scene(rng, options=options)
    return scene, choose_turns(
        scene,
        rng=rng,
        tasks=tasks,
        turns=turns,
        options=options,
        caption_first=caption_first,
        apart=apart,
        alone=alone,
    )


def read_rows(path: Path | str) -> list[Row]:
    """The rows of a JSONL file that `write_split` wrote."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def _chunk(work: tuple[_Job, int, int]) -> Made:
    job, start, stop = work
    made = Made()
    for index in range(start, stop):
        scene, turns = make_picture(
            index, name=job.name, seed=job.seed, options=job.options, tasks=job.tasks,
            turns=job.turns, caption_first=job.caption_first, apart=job.apart, alone=job.alone,
        )  # fmt: skip
        key = f"{job.name}-{index:06d}"
        single = [qa for qa in turns if not qa.scenes]
        if single:
            _add(made, job=job, key=key, scenes=(scene,), turns=single)
        for extra, qa in enumerate(qa for qa in turns if qa.scenes):
            if qa.shots:
                _add_shots(made, job=job, key=f"{key}-{extra}", last=qa)
            else:
                _add(made, job=job, key=f"{key}-{extra}", scenes=qa.scenes, turns=[qa])
    return made


def _add(made: Made, *, job: _Job, key: str, scenes: Sequence[Scene], turns: Sequence[QA]) -> None:
    """Draw the pictures of one record; append the record and its rows."""
    moving = turns[0].moving
    kind = "video" if moving else "image"
    media = _drawn(job, key=key, scenes=scenes, moving=moving)
    conversations = []
    for number, qa in enumerate(turns):
        text = qa.question
        if number == 0 and MARK not in text:
            text = f"<{kind}>\n" * len(media) + text
        conversations += said(text, qa.answer)
        message = {"role": "user", "content": _parts(qa.question, kind, media)}
        made.rows.append(_row(f"{key}/{number}", qa, [message], scenes[0]))
    one = len(media) == 1 and isinstance(media[0], str)
    made.records.append(
        {"id": key, kind: media[0] if one else media, "conversations": conversations}
    )
    if job.told and not moving:
        made.told.append(_told(made.records[-1], scenes, job))


def _add_shots(made: Made, *, job: _Job, key: str, last: QA) -> None:
    """A record whose every turn has a picture; its only row asks the last turn."""
    turns = [*last.shots, last]
    scenes = [scene for qa in turns for scene in qa.scenes]
    media = _drawn(job, key=key, scenes=scenes, moving=False)
    conversations, messages = [], []
    for qa, medium in zip(turns, media, strict=True):
        conversations += said(f"{MARK}\n{qa.question}", qa.answer)
        messages.append({"role": "user", "content": _parts(qa.question, "image", [medium])})
        messages.append({"role": "assistant", "content": qa.answer})
    made.records.append({"id": key, "image": media, "conversations": conversations})
    made.rows.append(_row(f"{key}/0", last, messages[:-1], scenes[-1]))
    if job.told:
        made.told.append(_told(made.records[-1], scenes, job))


def said(question: str, answer: str) -> list[Row]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _row(id: str, qa: QA, messages: list[Row], scene: Scene) -> Row:
    return {
        "id": id,
        "messages": messages,
        "answer": qa.answer,
        "references": list(qa.accepted),
        "task": qa.task,
        "scorer": qa.scorer,
        "meta": {"size": list(scene.size), **qa.meta},
    }


def _parts(question: str, kind: str, media: Sequence[Any]) -> list[Row]:
    """Media before the question, or where its marks are."""
    shown: list[Row] = [{"type": kind, kind: medium} for medium in media]
    first, *others = question.split(MARK)
    if not others:
        return [*shown, {"type": "text", "text": question}]
    parts: list[Row] = [{"type": "text", "text": first}]
    for medium, text in zip(shown, others, strict=True):
        parts += [medium, {"type": "text", "text": text}] if text else [medium]
    return parts


def _told(record: Row, scenes: Sequence[Scene], job: _Job) -> Row:
    """The same conversation with a caption in the place of each picture."""
    tell = caption if job.told == "short" else caption_dense
    captions = iter(tell(scene, rng=Random(0), options=job.options)[0].answer for scene in scenes)
    turns = []
    for turn in record["conversations"]:
        first, *others = turn["value"].split(MARK)
        value = first + "".join(next(captions) + text for text in others)
        turns.append({**turn, "value": value})
    return {"id": record["id"], "conversations": turns}


def _drawn(
    job: _Job, *, key: str, scenes: Sequence[Scene], moving: bool
) -> list[str] | list[list[str]]:
    """Draw a record's pictures; the names of its media: pictures, a video, or a list of frames."""
    pictures = [draw_scene(scene) for scene in scenes]
    if moving and job.film != "frames":
        name = f"images/{key}.{job.film}"
        write_video(pictures, job.folder / name)
        return [name]
    suffixes = [""] if len(scenes) == 1 else [f"-{k}" for k in range(len(scenes))]
    images = [f"images/{key}{suffix}.png" for suffix in suffixes]
    for picture, image in zip(pictures, images, strict=True):
        picture.save(job.folder / image, compress_level=1)
    return [images] if moving else images
