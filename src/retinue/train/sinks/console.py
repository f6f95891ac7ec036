"""A progress line on a terminal; plain lines elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from retinue.core.log import get_logger
from retinue.train.sinks.base import Row, Sink

LINES = 20
"""Lines a stage prints where there is no terminal to redraw."""


class ConsoleSink(Sink):
    """Progress with loss, learning rate, tokens/s and time left."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.live = sys.stderr.isatty()
        self.progress: Progress | None = None
        self.task = TaskID(0)
        self.first, self.last, self.name = 0, 0, ""

    def stage(self, name: str, *, first: int, last: int) -> None:
        self.close()
        self.name, self.first, self.last = name, first, last
        if self.live:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.progress.add_task(name, total=last - first, numbers="")
            self.progress.start()

    def log(self, row: Row) -> None:
        done = row["step"] - self.first
        if row["kind"] != "train":
            line = f"{self.name} {done}/{self.last - self.first}  {_numbers(row)}"
            get_logger().info(line)
        elif self.progress is not None:
            self.progress.update(self.task, completed=done, numbers=_numbers(row))
        elif done == 1 or row["step"] == self.last or done % self._stride == 0:
            left = f"  {row['eta']:.0f} s left" if row.get("eta") else ""
            get_logger().info(f"{self.name} {done}/{self.last - self.first}  {_numbers(row)}{left}")

    @property
    def _stride(self) -> int:
        return max(1, (self.last - self.first) // LINES)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _numbers(row: Row) -> str:
    if row["kind"] == "evaluation":
        left_out = ("kind", "stage", "step")
        return "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in left_out)
    parts = [f"{'validation ' if row['kind'] == 'validation' else ''}loss {row['loss']:.4f}"]
    if "lr" in row:
        parts.append(f"lr {row['lr']:.2e}")
    if "tokens_per_s" in row:
        parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
    return "  ".join(parts)
