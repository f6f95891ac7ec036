"""Scalars for TensorBoard (extra `train`)."""

from __future__ import annotations

from pathlib import Path

from retinue.core.lazy import need
from retinue.train.sinks.base import Row, Sink


class TensorBoardSink(Sink):
    """Event files under tensorboard/, one scalar per number of a row."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        need("tensorboard", extra="train", purpose="the tensorboard sink")
        module = need("torch.utils.tensorboard", extra="train", purpose="the tensorboard sink")
        self.writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self.writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def close(self) -> None:
        self.writer.close()
