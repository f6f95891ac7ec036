"""What a run says: a logger that only rank 0 lets through, tables, JSON lines."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_said: set[str] = set()


def rank() -> int:
    """Number of this process among those of a launch (torchrun's RANK), 0 outside of one."""
    return int(os.environ.get("RANK", "0"))


class _FirstRankOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return rank() == 0 or record.levelno >= logging.ERROR


class _Stderr(logging.StreamHandler[Any]):
    """Writes to the stderr of the moment, so that a redirected one is honoured."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        del value


def get_logger(name: str = "retinue") -> logging.Logger:
    """The logger of a module under "retinue"; info of rank 0 and errors of every rank show."""
    top = logging.getLogger("retinue")
    if not top.handlers:
        handler = _Stderr()
        handler.addFilter(_FirstRankOnly())
        handler.setFormatter(logging.Formatter("%(message)s"))
        top.addHandler(handler)
        top.setLevel(os.environ.get("RETINUE_LOG", "INFO").upper())
        top.propagate = False
    return logging.getLogger(name if name.startswith("retinue") else f"retinue.{name}")


def once(line: str, *, level: int = logging.INFO) -> None:
    """Log a line the first time it is said in this process."""
    if line not in _said:
        _said.add(line)
        get_logger().log(level, line)


def print_table(
    rows: Sequence[Sequence[Any]],
    *,
    header: Sequence[str],
    title: str | None = None,
    file: IO[str] | None = None,
) -> None:
    """Print rows under a header, by rich; numbers right-aligned. Only rank 0 prints."""
    from rich.console import Console
    from rich.table import Table

    if rank() != 0:
        return
    table = Table(*(), title=title, title_justify="left", box=None, pad_edge=False)
    for column, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[column], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(file=file or sys.stdout, highlight=False, markup=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class JsonLines:
    """A file of one JSON object a line, flushed after each; other ranks than 0 write nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if rank() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; what JSON does not know is written as text."""
        if rank() == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
