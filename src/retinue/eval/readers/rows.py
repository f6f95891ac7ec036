"""Reader of benchmarks that are one file of rows: the task names the fields."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from retinue.eval.readers.base import (
    LETTERS,
    Item,
    Reader,
    Row,
    letter_of,
    lettered,
    listed,
    load,
    odd,
    once,
    records,
    value,
)


class Rows(Reader):
    """A file of rows (JSON, JSONL, CSV, TSV), or several of one form; the names of its fields.

    `id`, `media` and `question` are fields, or patterns such as `{imageId}.jpg`; `_number` counts
    rows from 0, `_key` is the key of a row in an object of rows. A question of "" is none.

    options: one field with a list, or several fields, of which empty ones are left out; answer: the
    right one as letter, number from 0 or text. references: a text, a list, or a list of objects
    with the text in `text`. rename: value of the reference -> what counts as right. only: field ->
    value of the rows to keep. rotations: ask once for every order of the options that a turn gives
    (MMBench's circular evaluation).
    """

    kind: Literal["rows"] = "rows"
    file: str | tuple[str, ...]
    at: str | None = None
    id: str = "id"
    media: str | None = "image"
    media_kind: Literal["image", "video"] = "image"
    folder: str = "."
    encoded: bool = False
    question: str = "question"
    fields: dict[str, str] = {}
    options: str | tuple[str, ...] | None = None
    answer: str | None = None
    references: str | None = None
    text: str = "answer"
    rename: dict[str, str] = {}
    facts: tuple[str, ...] = ()
    only: dict[str, str] = {}
    rotations: bool = False

    def items(self, folder: Path) -> Iterator[Item]:
        """The rows that are kept, in order. Raises DataError for a missing field."""
        return once(self._items(folder))

    def _items(self, folder: Path) -> Iterator[Item]:
        for number, (where, row) in enumerate(self._rows(folder)):
            row = {**row, "_number": number}
            if any(str(row.get(key)) != wanted for key, wanted in self.only.items()):
                continue
            options = self._options(row, where=where)
            yield self._item(folder, row, options, where=where, turn=0)
            for turn in range(1, len(options) if self.rotations else 0):
                yield self._item(folder, row, options, where=where, turn=turn)

    def _rows(self, folder: Path) -> Iterator[tuple[str, Row]]:
        for name in (self.file,) if isinstance(self.file, str) else self.file:
            if self.at is None:
                yield from records(folder, name)
                continue
            path = folder / name
            yield from listed(value(load(folder, name), self.at, where=str(path)), path)

    def _item(self, folder: Path, row: Row, options: list[str], *, where: str, turn: int) -> Item:
        turned = options[turn:] + options[:turn]
        number = str(filled(row, self.id, where=where))
        names = {"question": self.question, **self.fields}
        fields = {key: text(filled(row, name, where=where)) for key, name in names.items()}
        facts = {name: row[name] for name in self.facts if row.get(name) not in (None, "")}
        if self.rotations:
            facts["_item"] = number
        return Item(
            id=f"{number}-{turn}" if turn else number,
            fields={**fields, "options": lettered(turned)},
            where=where,
            media=self._media(folder, row, where=where),
            kind=self.media_kind,
            references=self._references(row, options, turned, where=where),
            facts=facts,
            row={key: row[key] for key in row if key[0] != "_" and key not in self._heavy()},
        )

    def _heavy(self) -> tuple[str, ...]:
        """Fields that are pictures themselves."""
        return (self.media,) if self.encoded and self.media else ()

    def _options(self, row: Row, *, where: str) -> list[str]:
        if self.options is None:
            return []
        if isinstance(self.options, str):
            found = value(row, self.options, where=where)
            if not isinstance(found, list):
                raise odd(where, f"a list in {self.options!r}")
            return [str(one) for one in found]
        return [str(row[name]) for name in self.options if row.get(name) not in (None, "", "nan")]

    def _media(self, folder: Path, row: Row, *, where: str) -> tuple[str | bytes, ...]:
        if self.media is None:
            return ()
        found = filled(row, self.media, where=where)
        if not found:
            return ()
        if self.encoded:
            try:
                return (base64.b64decode(str(found), validate=True),)
            except binascii.Error as error:
                raise odd(where, f"a picture in base64 ({error})") from None
        names = found if isinstance(found, list) else [found]
        return tuple(str(folder / self.folder / str(name)) for name in names)

    def _references(
        self, row: Row, options: list[str], turned: list[str], *, where: str
    ) -> tuple[str, ...]:
        if self.answer is not None:
            found = row.get(self.answer)
            if found in (None, ""):
                return ()
            letter = letter_of(found, options, where=where)
            return (letter_of(options[LETTERS.index(letter)], turned, where=where),)
        if self.references is None:
            return ()
        found = value(row, self.references, where=where)
        many = found if isinstance(found, list) else [found]
        given = [text(one.get(self.text) if isinstance(one, Mapping) else one) for one in many]
        return tuple(self.rename.get(one, one) for one in given)


def filled(row: Row, name: str, *, where: str) -> Any:
    """A field, or a pattern with fields in braces; "" is empty."""
    if not name:
        return ""
    if "{" not in name:
        return value(row, name, where=where)
    try:
        return name.format_map(row)
    except (KeyError, ValueError, TypeError) as error:
        raise odd(where, f"fields for {name!r} ({error})") from None


def text(found: Any) -> str:
    return "" if found is None else str(found)
