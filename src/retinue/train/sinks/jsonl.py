"""One JSON object a line in metrics.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from retinue.core.log import JsonLines
from retinue.train.sinks.base import Row, Sink

FILE = "metrics.jsonl"


class JsonlSink(Sink):
    """metrics.jsonl: one row per logged update, each update at most once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lines = JsonLines(folder / FILE)

    def forget(self, step: int) -> None:
        rows = [row for row in read_rows(self.lines.path) if row["step"] <= step]
        part = self.lines.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        os.replace(part, self.lines.path)

    def log(self, row: Row) -> None:
        self.lines.write(row)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
