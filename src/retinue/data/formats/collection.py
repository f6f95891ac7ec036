"""Instruct-Flamingo's dataset configs: several instruction files with a ratio each.

Source: the data documentation of ChenDelong1999/instruct_flamingo.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from retinue.core.errors import DataError
from retinue.data.formats.instruct import Instruct
from retinue.data.formats.records import Records
from retinue.types import Sample

FIELDS = ("dataset_name", "json_path", "img_dir", "ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One data set of a file that holds several: its rows, and its weight."""

    name: str
    rows: range
    ratio: float


class Collection:
    """A list of {dataset_name, json_path, img_dir, ratio}, read as one file of all their rows.

    Relative paths start at the media root (default: beside the config). `shares` tells the data
    sets apart: each is a source of its own in a mixture, whose ratio counts where an epoch has a
    number of samples; turns may come from all of them. `files`: what was read.
    """

    def __init__(self, path: Path, parts: list[tuple[str, float, Instruct]]) -> None:
        self.path, self.parts = path, [part for *_, part in parts]
        self.starts = [0, *accumulate(len(part) for part in self.parts)]
        self.files = [part.records.path for part in self.parts]
        self.shares: Sequence[Share] = [
            Share(name=name, rows=range(start, start + len(part)), ratio=ratio)
            for (name, ratio, part), start in zip(parts, self.starts, strict=False)
        ]

    @classmethod
    def claims(cls, path: Path) -> bool:
        records = Records(path, limit=1)
        return len(records) > 0 and "json_path" in records[0]

    @classmethod
    def open(
        cls, path: str | Path, *, media_root: str | Path | None = None, empty_answers: bool = False
    ) -> Self:
        """Raises DataError for a missing field, a missing file, or a ratio that is no number."""
        config = Path(path)
        root = Path(media_root) if media_root is not None else config.parent
        rows = Records(config)
        parts = []
        for index in range(len(rows)):
            row = rows[index]
            name, file, images, ratio = _fields(row, where=rows.where(index))
            part = Instruct.open(root / file, media_root=root / images, empty_answers=empty_answers)
            parts.append((name, ratio, part))
        return cls(config, parts)

    def __len__(self) -> int:
        return self.starts[-1]

    def _locate(self, index: int) -> tuple[Instruct, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self.starts, index) - 1
        return self.parts[number], index - self.starts[number]

    def __getitem__(self, index: int) -> Sample:
        part, row = self._locate(index)
        return part[row]

    def where(self, index: int) -> str:
        part, row = self._locate(index)
        return part.where(row)


def _fields(row: dict[str, Any], *, where: str) -> tuple[str, str, str, float]:
    missing = [name for name in FIELDS if name not in row]
    ratio = row.get("ratio")
    if missing or isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio <= 0:
        raise DataError(
            f"no {', '.join(missing)}" if missing else f"ratio {ratio!r}",
            where=where,
            rule=f"a data set has {', '.join(FIELDS)}; a ratio is a number above 0",
            fix="complete the entry",
        )
    return str(row["dataset_name"]), str(row["json_path"]), str(row["img_dir"]), float(ratio)
