"""What a reader of a benchmark's files yields, and the steps that readers share."""

from __future__ import annotations

import csv
import json
import string
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from retinue.core.errors import ConfigError, DataError
from retinue.core.spec import Spec

LETTERS = string.ascii_uppercase
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a benchmark as its files have it.

    fields: what the prompt may name. references: empty where the answers are not public. facts:
    what figures are broken down by. aliases: other ids under which predictions may stand. row: the
    published fields that a submission repeats. choices: the answers that a task which ranks them
    ranks. named: pictures stand where the question says `<image 1>`, else before it. scorer: where
    rows of one benchmark are scored in different ways.
    """

    id: str
    fields: Mapping[str, str]
    where: str
    media: tuple[str | bytes, ...] = ()
    kind: Literal["image", "video"] = "image"
    references: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    named: bool = False
    scorer: str | None = None


class Reader(Spec):
    """A benchmark's public layout: the keys are its files, `items` reads them from a folder."""

    Spec: ClassVar[Any]
    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.Spec = cls

    @abstractmethod
    def items(self, folder: Path) -> Iterator[Item]:
        """The questions in order. Raises DataError naming the file that is missing or odd."""
        ...


def load(folder: Path, name: str) -> Any:
    """A JSON file. Raises DataError naming it."""
    path = folder / name
    return parse(text_of(path), where=str(path))


def records(folder: Path, name: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of a file of rows: JSON list or object of objects, JSONL, CSV or TSV."""
    path = folder / name
    if path.suffix in (".csv", ".tsv"):
        yield from table(path)
        return
    text = text_of(path)
    try:
        data = None if path.suffix == ".jsonl" else json.loads(text)
    except ValueError:
        data = None  # several objects, one a line
    if isinstance(data, Mapping) and not all(isinstance(one, Mapping) for one in data.values()):
        data = [data]
    if data is not None:
        yield from listed(data, path)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", row_of(parse(line, where=f"{path}:{number}"), path)


def listed(data: Any, path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of a list of objects or an object of objects."""
    if isinstance(data, Mapping):
        data = [{"_key": key, **row_of(value, path)} for key, value in data.items()]
    if not isinstance(data, list):
        raise odd(str(path), "rows: a list of objects, or an object of objects")
    for number, row in enumerate(data):
        yield f"{path} row {number}", row_of(row, path)


def table(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a CSV or TSV file with a header; empty cells are empty texts."""
    csv.field_size_limit(sys.maxsize)  # pictures stand in cells
    lines = text_of(path).splitlines(keepends=True)
    rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
    for row in rows:
        yield f"{path}:{rows.line_num}", {key: value or "" for key, value in row.items() if key}


def text_of(path: Path) -> str:
    """A file's text. Raises DataError where it is missing."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "a file of the benchmark cannot be read",
            where=str(path),
            rule=f"{type(error).__name__}",
            fix="put the benchmark's files there as they are published, or name --tasks-root",
        ) from None


def parse(text: str, *, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise odd(where, f"JSON ({error})") from None


def row_of(data: Any, path: Path) -> Row:
    if not isinstance(data, Mapping):
        raise odd(str(path), "rows that are objects")
    return data


def odd(where: str, expected: str) -> DataError:
    """The error for a file of another form."""
    return DataError("not the benchmark's published form", where=where, rule=f"expected {expected}")


def value(row: Row, name: str, *, where: str) -> Any:
    """A field, found below others with `a.b`. Raises DataError with what there is."""
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = ", ".join(map(str, found)) if isinstance(found, Mapping) else "none"
            raise DataError(f"no field {name!r}", where=where, rule=f"fields there: {known:.300}")
        found = found[part]
    return found


def lettered(options: Sequence[str]) -> str:
    """`A. first` and so on, a line each."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def letter_of(answer: Any, options: Sequence[str], *, where: str) -> str:
    """The letter of the right option, given as letter, number from 0, or text."""
    if isinstance(answer, str) and answer in LETTERS[: max(len(options), 1)] and answer:
        return answer
    number = answer
    if isinstance(answer, str):
        number = options.index(answer) if answer in options else answer
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if isinstance(number, int) and 0 <= number < len(options):
        return LETTERS[number]
    raise DataError(
        f"the answer {answer!r:.60} is none of the options",
        where=where,
        rule=f"a letter, a number from 0 or the text of one of {list(options)!r:.200}",
    )


def once(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; raises DataError for an id that stands twice."""
    seen: dict[str, str] = {}
    for item in items:
        if item.id in seen:
            raise ConfigError(
                f"two questions have the id {item.id!r}",
                where=item.where,
                rule=f"the other: {seen[item.id]}",
                fix="give the reader's `id` a pattern that tells them apart",
            )
        seen[item.id] = item.where
        yield item
