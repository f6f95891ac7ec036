"""Any table as rows of the instruction format: which column is which is said by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retinue.core.errors import ConfigError, DataError
from retinue.data.published.raw import Raw, Row, records, shown

FIELDS = ("id", "image", "question", "answer")


def columns(raw: Raw) -> Iterator[Row]:
    """JSON, JSONL, CSV, TSV or Parquet with the columns that --map names (our own).

    question and answer are needed; image may be a path or a list of them; dots reach into objects.
    """
    odd = set(raw.columns) - set(FIELDS)
    missing = {"question", "answer"} - set(raw.columns)
    if odd or missing:
        raise ConfigError(
            f"unknown: {', '.join(sorted(odd))}" if odd else f"no {', '.join(sorted(missing))}",
            where="--map",
            rule=f"{', '.join(FIELDS)}; question and answer are needed",
            fix="--map image=COLUMN,question=COLUMN,answer=COLUMN",
        )
    for number, row in enumerate(records(raw.path)):
        place = f"{raw.path}, row {number}"
        found = {name: _reached(row, path, where=place) for name, path in raw.columns.items()}
        images = found.get("image") or ()
        named = [images] if isinstance(images, str) else list(images)
        made = {
            "input": "".join(shown(raw.picture(str(one))) for one in named)
            + _text(found["question"], "question", where=place),
            "output": _text(found["answer"], "answer", where=place),
        }
        yield {"id": str(found["id"]), **made} if "id" in found else made


def _reached(row: Any, path: str, *, where: str) -> Any:
    for part in path.split("."):
        if isinstance(row, list) and part.isdecimal() and int(part) < len(row):
            row = row[int(part)]
        elif isinstance(row, dict) and part in row:
            row = row[part]
        else:
            has = f"has {', '.join(map(str, row))}" if isinstance(row, dict) else f"{row!r:.40}"
            raise DataError(f"no column {path!r}", where=where, rule=has, fix="mend --map")
    return row


def _text(value: Any, name: str, *, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    raise DataError(f"{name}: {value!r:.40}", where=where, rule="a text or a number")
