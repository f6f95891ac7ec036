"""Random access to the JSON objects of a file: one per line, or the elements of one list.

Only byte offsets stay in memory, whatever the size of the file.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError

CHUNK = 1 << 20
SPACE = " \t\r\n"
SEPARATOR = SPACE + ","


class Records:
    """The objects of a JSON list or of a JSONL file, by index; `limit`: only the first so many.

    Raises DataError for a missing or empty file, for broken JSON (with its line) and for an
    element that is no object.
    """

    def __init__(self, path: str | Path, *, limit: int | None = None) -> None:
        self.path = Path(path)
        try:
            first = _first_byte(self.path)
        except OSError as error:
            raise DataError(
                f"cannot be read: {error.strerror}", where=str(path), fix="check the path"
            ) from None
        if not first:
            raise DataError(
                "the file is empty",
                where=str(path),
                rule="a data file holds at least one JSON object",
                fix="write one object per line, or one list of objects",
            )
        self.is_list = first == b"["
        self._starts, self._ends = (
            _list_offsets(self.path, limit) if self.is_list else _line_offsets(self.path, limit)
        )

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = self._starts[index], self._ends[index]
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(end - start).rstrip()
        try:
            value = json.loads(raw)
        except json.JSONDecodeError as error:
            line = self.line(index) + error.lineno - 1
            raise _broken(self.path, line, f"{error.msg} at column {error.colno}") from None
        except UnicodeDecodeError:
            raise _broken(self.path, self.line(index), "the text is not UTF-8") from None
        if not isinstance(value, dict):
            raise DataError(
                f"expected an object, found {type(value).__name__}",
                where=self.where(index),
                rule="every record is a JSON object",
                fix="wrap the values in {...}",
            )
        return value

    def line(self, index: int) -> int:
        """The line, from 1, on which a record starts."""
        return line_at(self.path, self._starts[index])

    def where(self, index: int) -> str:
        """`file.json:12`, the place of a record for error messages."""
        return f"{self.path}:{self.line(index)}"


def line_at(path: Path, offset: int) -> int:
    """The line number, from 1, of a byte offset; read only when an error needs it."""
    lines = 1
    with path.open("rb") as file:
        while offset > 0 and (chunk := file.read(min(CHUNK, offset))):
            lines += chunk.count(b"\n")
            offset -= len(chunk)
    return lines


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if text := chunk.removeprefix(b"\xef\xbb\xbf").lstrip():
                return text[:1]
    return b""


def _line_offsets(path: Path, limit: int | None) -> tuple[array[int], array[int]]:
    starts, ends = array("q"), array("q")
    position = 0
    with path.open("rb") as file:
        for line in file:
            mark = 3 if position == 0 and line.startswith(b"\xef\xbb\xbf") else 0
            if line[mark:].strip():
                starts.append(position + mark)
                ends.append(position + len(line))
            position += len(line)
            if len(starts) == limit:
                break
    return starts, ends


def _list_offsets(path: Path, limit: int | None) -> tuple[array[int], array[int]]:
    """Offsets of a list's elements, found by decoding them one after the other in a window.

    The window is read as Latin-1, where characters are bytes: the structure of JSON is ASCII.
    """
    starts, ends = array("q"), array("q")
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        window, base, at = file.read(CHUNK).decode("latin-1"), 0, 0
        at = window.index("[") + 1
        while True:
            while at < len(window) and window[at] in SEPARATOR:
                at += 1
            try:
                if window[at : at + 1] == "]" or len(starts) == limit:
                    return starts, ends
                _, end = decoder.raw_decode(window, at)
            except json.JSONDecodeError as error:
                # a long record is cut by the window; doubling keeps the whole scan linear
                more = file.read(max(CHUNK, len(window) - at)).decode("latin-1")
                if more:
                    window, base, at = window[at:] + more, base + at, 0
                    continue
                line = line_at(path, base + error.pos)
                reason = error.msg if at < len(window) else "the list is not closed by ']'"
                raise _broken(path, line, reason) from None
            starts.append(base + at)
            ends.append(base + end)
            at = end


def _broken(path: Path, line: int, reason: str) -> DataError:
    return DataError(
        f"broken JSON: {reason}",
        where=f"{path}:{line}",
        rule="a data file is one JSON object per line, or one JSON list of objects",
        fix="mend that line",
    )
