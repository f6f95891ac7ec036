"""The sink seam, and the row that sinks are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
"""kind: "train" | "validation" | "evaluation"; stage, step (of the run), and what is known: the
loss, or for an evaluation its metrics."""


class Sink(ABC):
    """Opened once per run; made only on the first rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(self, name: str, *, first: int, last: int) -> None:  # noqa: B027
        """A stage begins at update `first` of the run and ends before `last`."""

    def forget(self, step: int) -> None:  # noqa: B027
        """The run goes on from update `step`: what was said of later updates is void."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Take one row."""

    def close(self) -> None:  # noqa: B027
        """The run has ended, well or not."""
