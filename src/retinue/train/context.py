"""What the stages of a run share, and how a run ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinue.data.dataset import Dataset
from retinue.data.spec import DataSpec
from retinue.model.freeze import TrainableTable
from retinue.parallel.ranks import Ranks
from retinue.train.record import writing
from retinue.train.sinks.base import Sink
from retinue.train.spec import RunSpec
from retinue.train.state import Checkpoints
from retinue.train.stop import StopRequest

if TYPE_CHECKING:
    from retinue.train.judge import Judge

OpenData = Callable[[DataSpec], Dataset]
"""Opens the sources of a `data:` branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended. model: the finished model's folder, None if it was stopped."""

    folder: Path
    model: Path | None
    metrics: dict[str, Any]
    stopped: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal that stopped the run (143: SIGTERM, 130: SIGINT)."""
        return 0 if self.stopped is None else 128 + self.stopped


@dataclass(slots=True, kw_only=True)
class Run:
    """What all stages share. `step`: updates of the run so far; `trained`: names ever trained."""

    spec: RunSpec
    model: Any
    processor: Any
    open_data: OpenData
    folder: Path
    checkpoints: Checkpoints
    ranks: Ranks
    sinks: list[Sink]
    stop: StopRequest
    judge: Judge | None = None
    step: int = 0
    trained: dict[str, None] = field(default_factory=dict)
    tables: dict[str, TrainableTable] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def say(self, row: dict[str, Any]) -> None:
        """Give a row to every sink."""
        self.rows.append(row)
        with writing(self.folder):
            for sink in self.sinks:
                sink.log(row)
