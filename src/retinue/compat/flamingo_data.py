"""Instruct-Flamingo's epochs as its dataset class draws them, for runs that must repeat its order.

Source: ChenDelong1999/instruct_flamingo (`instruction_tuning/data`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retinue.core.errors import DataError
from retinue.data.formats.base import interleave
from retinue.data.formats.instruct import TAG
from retinue.types import Media, Message, Sample

EMPTY = {"", " ", "  ", "\n"}
"""Answers that the original replaces by another sample."""

Mode = Literal["ratio", "sqrt"]


@dataclass(slots=True, kw_only=True)
class Entry:
    """One record of a data set; `prefix` is an older file's instruction."""

    input: str
    output: str
    dataset: int
    prefix: str | None = None
    folder: str = ""

    @property
    def pictures(self) -> list[str]:
        """Paths of its pictures."""
        return [str(Path(self.folder) / path) for path in TAG.findall(self.input)]


@dataclass(slots=True, kw_only=True)
class Collection:
    """The data sets of a config file, or the one of a data file."""

    names: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    entries: list[list[Entry]] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path, *, image_dir: str = "", root: Path | None = None) -> Collection:
        """Read a config (a list of dataset_name, json_path, img_dir, ratio) or a data file.

        root: where its relative paths start, default the working folder. Raises DataError.
        """
        path = Path(path)
        rows = _json(path)
        root = root or Path()
        if "input" in rows[0] and "json_path" not in rows[0]:
            rows = [
                {
                    "dataset_name": path.name.removesuffix(".json"),
                    "json_path": str(path.absolute()),
                    "img_dir": image_dir,
                    "ratio": 1.0,
                }
            ]
        made = cls()
        for number, row in enumerate(rows):
            made.names.append(row["dataset_name"])
            made.ratios.append(float(row["ratio"]))
            made.entries.append(
                [
                    Entry(
                        input=one.get("input", ""),
                        output=one["output"],
                        prefix=one.get("instruction"),
                        dataset=number,
                        folder=str(root / row["img_dir"]),
                    )
                    for one in _json(root / row["json_path"])
                ]
            )
        return made


def _json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("no readable JSON", where=str(path), rule=str(error)) from None
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise DataError("no list of records", where=str(path), rule="a JSON list of objects")
    return rows


def counts_of(
    sizes: Sequence[int],
    ratios: Sequence[float],
    *,
    number: int,
    mode: Mode,
    rng: random.Random,
) -> list[int]:
    """How many samples each data set gives: whole shares, the rest to one that is drawn."""
    weights = list(ratios) if mode == "ratio" else [size**0.5 for size in sizes]
    counts = [int(number * weight / sum(weights)) for weight in weights]
    if sum(counts) < number:
        counts[rng.randint(0, len(counts) - 1)] += number - sum(counts)
    return counts


def draw(
    entries: Sequence[Sequence[Any]],
    ratios: Sequence[float],
    *,
    number: int,
    mode: Mode = "ratio",
    rng: random.Random,
    fits: Callable[[Any], bool] | None = None,
) -> list[Any]:
    """The samples of an epoch, data set after data set; number -1: all of them once.

    fits: a sample that does not gives way to any that was taken before it; there must be one.
    """
    counts = [len(own) for own in entries]
    if number >= 0:
        counts = counts_of(counts, ratios, number=number, mode=mode, rng=rng)
    found: list[Any] = []
    for own, count in zip(entries, counts, strict=True):
        chosen = list(own) if number < 0 else rng.choices(own, k=count)
        for entry in chosen:
            good = fits is None or fits(entry)
            if not good and not found:
                raise DataError(
                    "the first sample drawn is too long or has no answer",
                    rule="a sample is replaced by one that was drawn before it",
                    fix="raise max_length, or drop the sample from the file",
                )
            found.append(entry if good else rng.choice(found))
    return found


class FlamingoEpoch:
    """The conversations of one epoch, in the original's order and with its augmentation.

    An older file's instruction is put before the input each time a sample opens a conversation,
    again and again for the same record, and never where it is an added turn: as there.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        turns: int,
        max_images: int,
        rng: random.Random,
        shuffle: bool = True,
    ) -> None:
        self.entries = list(entries)
        self.turns, self.max_images, self.rng = turns, max_images, rng
        if shuffle:
            rng.shuffle(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def chosen(self, index: int) -> list[Entry]:
        """The record and those that follow it as further turns."""
        first = self.entries[index]
        if first.prefix is not None:
            first.input = first.prefix + first.input
        found, images = [first], len(first.pictures)
        for _ in range(self.turns):
            other = self.rng.choice(self.entries)
            if images + len(other.pictures) >= self.max_images:
                break
            found.append(other)
            images += len(other.pictures)
        return found

    def sample(self, index: int) -> Sample:
        """One conversation; draws from the stream."""
        return conversation(str(index), self.chosen(index))


def conversation(id: str, entries: Sequence[Entry]) -> Sample:
    """Records as the turns of one conversation."""
    messages: list[Message] = []
    for entry in entries:
        media = [Media(source=path, name=path) for path in entry.pictures]
        parts = interleave(TAG.split(entry.input)[::2], media)
        messages.append(Message(role="user", parts=tuple(parts)))
        messages.append(Message(role="assistant", parts=tuple(interleave([entry.output], []))))
    return Sample(id=id, messages=tuple(messages))
