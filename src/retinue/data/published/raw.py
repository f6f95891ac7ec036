"""What every converter is given: the data set's file, where its pictures are, a random stream."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from PIL.Image import Image as PILImage

from retinue.core.errors import ConfigError, DataError
from retinue.core.files import writing
from retinue.core.lazy import need
from retinue.data.formats.records import Records
from retinue.media.image import load_image

TAG = "<img_path>"
Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A data set in its own layout.

    path: its file or folder. images: what stands before a picture's name in the rows, None for
    the converter's default. rng: draws requests and orders. split: one part, where a file has
    several. columns: field of a row -> column, for `map`. made: where new pictures are written,
    and `shown_as` what stands before their names in the rows. names: file that names classes.
    """

    path: Path
    images: str | None = None
    rng: Random = field(default_factory=lambda: Random(0))
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    made: Path | None = None
    shown_as: str = ""
    names: Path | None = None

    def picture(self, name: str, *, under: str = "") -> str:
        """A picture's path in a row: the given folder, or `under`, before its name."""
        folder = under if self.images is None else self.images
        return f"{folder}/{name}" if folder else name

    def beside(self, name: str) -> Path:
        """Another file of the data set. Raises DataError where it is missing."""
        found = self.path.parent / name
        if not found.exists():
            raise DataError(
                f"{name} is missing",
                where=str(self.path.parent),
                rule=f"it is published with {self.path.name}",
                fix="put both into one folder",
            )
        return found

    def exists(self, path: str) -> bool:
        """Whether a picture of a row is there. Raises ConfigError where no folder was named."""
        if self.images is None or not Path(self.images).is_dir():
            raise ConfigError(
                "looks at the pictures",
                where=str(self.path),
                rule=f"--images {self.images}: no such folder",
                fix="name the folder of the pictures with --images",
            )
        return Path(path).is_file()

    def open(self, path: str) -> PILImage:
        """A picture of a row, decoded. Raises MediaError."""
        return load_image(path, where=str(self.path))

    def write(self, picture: PILImage, name: str) -> str:
        """Store a new picture; its path in a row. Raises EnvError, ConfigError without a folder."""
        if self.made is None:
            raise ConfigError(
                "this data set makes new pictures",
                where=str(self.path),
                fix="name a folder for them with --made",
            )
        target = self.made / name
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
        return f"{self.shown_as}/{name}" if self.shown_as else name


def shown(path: str) -> str:
    """A picture's place in the text."""
    return f"{TAG}{path}{TAG}"


@cache
def prompts(name: str) -> list[Any]:
    """The requests that converters draw from (prompts.json), by the list's name."""
    found = json.loads((Path(__file__).parent / "prompts.json").read_text("utf-8"))[name]
    assert isinstance(found, list)
    return found


def load(path: Path) -> Any:
    """A whole JSON file. Raises DataError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("no readable JSON", where=str(path), rule=str(error)) from None


def listed(path: Path, *, key: str) -> Any:
    """The list or object below `key` of a JSON file. Raises DataError."""
    data = load(path)
    if not isinstance(data, dict) or key not in data:
        raise DataError(
            f"no {key!r} in it", where=str(path), rule=f"a JSON object that holds {key!r}"
        )
    return data[key]


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a table: a JSON list, JSONL, CSV, TSV or Parquet. Raises DataError, EnvError."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind in (".csv", ".tsv"):
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError("no readable table", where=str(path), rule=str(error)) from None
    else:
        rows = Records(path)
        for index in range(len(rows)):
            yield rows[index]


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    parquet = need("pyarrow.parquet", extra="hdf5", purpose="reading Parquet")
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise DataError("no readable Parquet", where=str(path), rule=str(error)) from None


def text_of(row: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    """A field as text. Raises DataError naming it."""
    found = row.get(name, default)
    if found is None and default is not None:
        found = default
    if not isinstance(found, str):
        raise DataError(
            f"{name}: {'missing' if found is None else f'{found!r:.40} is no text'}",
            rule=f"a record has {', '.join(map(str, row)) or 'no field'}",
            fix="check that --from names the right data set",
        )
    return found


def sentence(text: str, *, ends: Sequence[str] = (".",)) -> str:
    """The first letter large, the others small, a period at the end unless one of `ends` is."""
    text = text.strip().capitalize()
    return text if text.endswith(tuple(ends)) else f"{text}."
