"""Reader of rows of `retinue eval --data`, TinyWorld's test questions among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.core.errors import DataError
from retinue.eval.questions import read_questions
from retinue.eval.readers.base import Item, Reader, once


class ChatRows(Reader):
    """Chat rows of one question each, with `references` or `answer`, `task` and `scorer`.

    without: beginnings of tasks that are left out.
    """

    kind: Literal["chat"] = "chat"
    file: str = "test.jsonl"
    without: tuple[str, ...] = ()

    def items(self, folder: Path) -> Iterator[Item]:
        """In the order of the file. Raises DataError for a row with more than one message."""
        return once(self._items(folder))

    def _items(self, folder: Path) -> Iterator[Item]:
        path = folder / self.file
        if not path.is_file():
            raise DataError(
                "no such file",
                where=str(path),
                rule="rows of `retinue eval --data`; `retinue quickstart` and `retinue data world` "
                "write TinyWorld's",
                fix="name the folder above it with --tasks-root",
            )
        for asked in read_questions(path):
            if asked.task.startswith(self.without):
                continue
            said = asked.sample.messages
            if len(said) != 1 or any(isinstance(one.source, tuple) for one in asked.sample.media):
                raise DataError("more than one question", where=asked.where, rule="one message")
            yield Item(
                id=asked.sample.id,
                fields={"question": said[0].text.strip()},
                where=asked.where,
                media=tuple(one.source for one in asked.sample.media),  # type: ignore[misc]
                references=asked.references,
                facts={"task": asked.task},
                scorer=asked.scorer,
            )
