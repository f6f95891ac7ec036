"""Few-shot questions: examples with their answers stand before what is asked, as earlier turns.

Legend: N examples, D feature width.
Reference: OpenFlamingo's evaluation (arXiv 2308.01390); RICES (arXiv 2109.05014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retinue.core.errors import ConfigError, DataError
from retinue.core.files import writing
from retinue.core.seed import stream_seed
from retinue.decode.prompt import device_of
from retinue.eval.questions import Question, given, open_rows
from retinue.eval.shots import nearest_shots, random_shots
from retinue.eval.task import Task, question_of
from retinue.processor import Processor
from retinue.types import Media, Message, Sample, Text

FINAL = 1000
"""A layer's number beyond the last one: what an encoder gives at its very end."""
KEY = "features"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """An example: a question with its answer."""

    id: str
    asked: Message
    said: Message

    @property
    def picture(self) -> Media | None:
        return next(iter(self.asked.media), None)

    @property
    def blind(self) -> Shot:
        """The same in words alone."""
        parts = tuple(part for part in self.asked.parts if isinstance(part, Text))
        text = "".join(part.text for part in parts).lstrip("\n")
        return replace(self, asked=replace(self.asked, parts=(Text(text=text),)))


def read_shots(
    path: Path, *, media_root: str | Path | None = None, limit: int | None = None
) -> list[Shot]:
    """The first exchange of every record of a data file (chat rows or LLaVA's).

    Where no assistant speaks the answer is the row's first reference. Raises DataError for a record
    without a question or an answer.
    """
    data = open_rows(path, media_root=media_root)
    count = len(data) if limit is None else min(limit, len(data))
    return [shot_of(data[index], where=data.where(index)) for index in range(count)]


def task_shots(name: str, task: Task, folder: Path) -> list[Shot]:
    """The training split of a benchmark, asked as its questions are; the first reference answers.

    Raises ConfigError for a task that names no such split, DataError where its files are missing.
    """
    found = []
    for item in task.train_reader(where=name).items(folder):
        if item.references:
            asked = question_of(name, task, item).sample.messages[-1]
            said = Message(role="assistant", parts=(Text(text=item.references[0]),))
            found.append(Shot(id=item.id, asked=asked, said=said))
    return found


def shot_of(sample: Sample, *, where: str) -> Shot:
    """A record's first exchange."""
    turns = [one for one in sample.messages if one.role != "system"]
    answers = [turns[1].text.strip()] if len(turns) > 1 and turns[1].role == "assistant" else []
    answers = answers or list(given(sample.meta)[:1])
    if not turns or turns[0].role != "user" or not answers:
        raise DataError(
            "no example",
            where=where,
            rule="it begins with a question, and an answer follows or stands in 'answer'",
        )
    said = Message(role="assistant", parts=(Text(text=answers[0]),))
    return Shot(id=sample.id, asked=turns[0], said=said)


def with_shots(question: Question, shots: Sequence[Shot]) -> Question:
    """The question behind its examples; a system message stays first."""
    messages = question.sample.messages
    head = messages[:1] if messages and messages[0].role == "system" else ()
    before = tuple(turn for shot in shots for turn in (shot.asked, shot.said))
    sample = replace(question.sample, messages=(*head, *before, *messages[len(head) :]))
    return replace(question, sample=sample)


def pictures(question: Question) -> list[Any]:
    return [media.source for media in question.sample.media]


def others(question: Question, shots: Sequence[Shot], *, count: int) -> list[int]:
    """Examples that are not the question itself: of another id, about another picture.

    Raises ConfigError where they are fewer than `count`.
    """
    own = {source for source in pictures(question) if isinstance(source, str)}
    found = [
        number
        for number, shot in enumerate(shots)
        if shot.id != question.sample.id
        and not (shot.picture is not None and shot.picture.source in own)
    ]
    if len(found) < count:
        raise ConfigError(
            f"{count} shots",
            where=question.where,
            rule=f"there are {len(found)} examples beside the question itself",
            fix="name a file with more, or ask for fewer",
        )
    return found


def drawn(
    questions: Sequence[Question], shots: Sequence[Shot], *, count: int, seed: int
) -> list[list[int]]:
    """Examples of every question, drawn from a stream of its own: a function of (seed, id)."""
    found = []
    for question in questions:
        free = others(question, shots, count=count)
        rng = Random(stream_seed(seed, "shots", question.sample.id))
        found.append([free[number] for number in random_shots(len(free), count=count, rng=rng)])
    return found


def nearest(
    questions: Sequence[Question],
    shots: Sequence[Shot],
    *,
    count: int,
    known_ND: Tensor,
    asked_ND: Tensor,
) -> list[list[int]]:
    """Examples whose pictures are most like the question's first one, the most similar last."""
    found = []
    for question, query_D in zip(questions, asked_ND, strict=True):
        free = others(question, shots, count=count)
        near = nearest_shots(known_ND[free], query_D, count=count)
        found.append([free[number] for number in near])
    return found


@torch.inference_mode()
def picture_features(
    model: Any,
    processor: Processor,
    media: Sequence[Media | None],
    *,
    batch_size: int = 32,
    cache: Path | None = None,
    mark: str = "",
) -> Tensor:
    """(N, D) final features of a model's first encoder: the class token, else the mean.

    cache: a file that keeps them; it is used again if it was made with the same `mark` and media.
    Raises ConfigError for an example without picture, MediaError.
    """
    names = hashlib.blake2b(digest_size=16)
    for one in media:
        if one is None or one.kind != "image":
            raise ConfigError(
                "an example or question without a picture",
                where="--select rices",
                rule="examples are chosen by the pictures",
                fix="--select random",
            )
        names.update(repr(one.source).encode())
    key = f"{mark}-{names.hexdigest()}"
    if cache is not None and cache.is_file():
        kept = load_file(cache)
        if key in kept:
            return kept[key]
    name, encoder = next(iter(model.encoders.items()))
    shape, first = model.plan.shapes[name], next(encoder.parameters())
    found = []
    for start in range(0, len(media), batch_size):
        items = [
            processor.item(one, where=str(one.source))
            for one in media[start : start + batch_size]
            if one is not None
        ]
        views = torch.cat([item.pixels[shape.stream][:1] for item in items]).to(device_of(model))
        pixels = encoder.pixels(views, dtype=first.dtype)
        x_NLD = encoder(pixels, layers=(FINAL,))[FINAL].x_NLD.float()
        found.append((x_NLD[:, 0] if shape.prefix else x_NLD.mean(1)).cpu())
    features = torch.cat(found)
    if cache is not None:
        with writing(cache):
            save_file({key: features}, cache)
    return features
