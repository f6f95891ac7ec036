"""A JSONL file of results that survives being killed: append, flush, repair, go on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.core.files import writing

Row = dict[str, Any]


class RowFile:
    """Rows in the order of their input. `rows` are those found on opening.

    A last line that was cut off is removed. Raises DataError for any other line that is no object.
    """

    def __init__(self, path: str | Path, *, restart: bool = False) -> None:
        self.path = Path(path)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if restart:
                self.path.unlink(missing_ok=True)
        self.rows: list[Row] = []
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or "id" not in row:
                raise DataError(
                    "not a row of results",
                    where=f"{self.path}:{number}",
                    rule="to go on, every line of the output is an object with 'id'",
                    fix="name another output, or --restart",
                )
            self.rows.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row through to the file."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace the contents."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with writing(self.path):
            self.path.write_text("".join(lines), "utf-8")

    def settled(self, ids: Iterable[Any], *, skipped: Collection[int] = ()) -> int:
        """How many inputs, in order, are answered or among those `skipped` before an answered one.

        Raises DataError where the rows answer other inputs, or these in another order.
        """
        found, position = iter(self.rows), 0
        row = next(found, None)
        for number, id in enumerate(ids):
            if row is None:
                break
            if number in skipped:
                continue
            if row["id"] != id:
                raise self._stranger(row, f"input {number + 1} has id {id!r}")
            row, position = next(found, None), number + 1
        if row is not None:
            raise self._stranger(row, "the input has no more rows")
        return position

    def _stranger(self, row: Row, rule: str) -> DataError:
        return DataError(
            f"holds an answer to {row['id']!r}",
            where=str(self.path),
            rule=f"to go on, it answers the input from its first row in order; {rule}",
            fix="name another output, or --restart",
        )
