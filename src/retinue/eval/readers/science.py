"""Reader of ScienceQA's problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.eval.readers.base import Item, Reader, letter_of, lettered, load, value


class ScienceQa(Reader):
    """ScienceQA: problems.json, the ids of a split, and images/SPLIT/ID/image.png."""

    kind: Literal["scienceqa"] = "scienceqa"
    problems: str = "problems.json"
    splits: str = "pid_splits.json"
    split: str = "test"
    images: str = "images/test"
    pictures_only: bool = False

    def items(self, folder: Path) -> Iterator[Item]:
        """The split's problems in its order; those without a picture are text alone."""
        problems = load(folder, self.problems)
        where = str(folder / self.splits)
        for number in value(load(folder, self.splits), self.split, where=where):
            place = f"{folder / self.problems} problem {number}"
            row = value(problems, str(number), where=place)
            options = [str(one) for one in value(row, "choices", where=place)]
            name = row.get("image")
            if self.pictures_only and not name:
                continue
            yield Item(
                id=str(number),
                fields={
                    "question": str(value(row, "question", where=place)),
                    "hint": str(row.get("hint") or ""),
                    "options": lettered(options),
                },
                where=place,
                media=(str(folder / self.images / str(number) / str(name)),) if name else (),
                references=(letter_of(value(row, "answer", where=place), options, where=place),),
                facts={
                    "picture": "yes" if name else "no",
                    **{key: row[key] for key in ("subject", "grade") if row.get(key)},
                },
            )
