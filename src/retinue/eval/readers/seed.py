"""Reader of SEED-Bench: choices about pictures and about frames of videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.eval.readers.base import Item, Reader, lettered, listed, load, once, value

CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


class Seed(Reader):
    """SEED-Bench: SEED-Bench.json; pictures by data_id, videos by a frame for every question."""

    kind: Literal["seed"] = "seed"
    file: str = "SEED-Bench.json"
    images: str = "SEED-Bench-image"
    frames: str = "SEED-Bench-video-image"
    shown: Literal["image", "video"] | None = None

    def items(self, folder: Path) -> Iterator[Item]:
        """In the order of the file."""
        return once(self._items(folder))

    def _items(self, folder: Path) -> Iterator[Item]:
        path, data = folder / self.file, load(folder, self.file)
        kinds = {
            number: name for name, number in value(data, "question_type", where=str(path)).items()
        }
        for where, row in listed(value(data, "questions", where=str(path)), path):
            number = str(value(row, "question_id", where=where))
            shown = str(value(row, "data_type", where=where))
            if self.shown not in (None, shown):
                continue
            picture = f"{self.images}/{row.get('data_id', number)}"
            if shown == "video":
                picture = f"{self.frames}/{number}.png"
            yield Item(
                id=number,
                fields={
                    "question": str(row.get("question", "")),
                    "options": lettered([str(row[key]) for key in CHOICES if key in row]),
                },
                where=where,
                media=(str(folder / picture),),
                references=(str(value(row, "answer", where=where)),),
                facts={
                    "type": kinds.get(row.get("question_type_id"), "unknown"),
                    "shown": shown,
                },
            )
