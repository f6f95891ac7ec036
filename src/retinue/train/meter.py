"""Rows of a run: updates averaged between two lines, with speed and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retinue.train.trainer import Update


class Meter:
    """Collects updates for rows; first: updates of the run before this stage."""

    def __init__(
        self,
        stage: str,
        *,
        first: int,
        total: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stage, self.first, self.total, self.clock = stage, first, total, clock
        self.held: list[Update] = []
        self.began = self.last = clock()
        self.tokens = self.supervised = self.views = self.updates = 0

    def add(self, update: Update) -> None:
        self.held.append(update)
        self.updates += 1
        self.tokens += update.tokens
        self.supervised += int(update.supervised)
        self.views += update.views

    def row(self) -> dict[str, Any]:
        """The updates since the last row as one; loss and norms are their means."""
        now, held = self.clock(), self.held
        seconds = max(now - self.last, 1e-9)
        latest = held[-1]
        row = {
            "kind": "train",
            "stage": self.stage,
            "step": self.first + latest.step,
            "loss": sum(u.loss for u in held) / len(held),
            "lr": latest.lr,
            "grad_norm": sum(u.grad_norm for u in held) / len(held),
            "tokens": sum(u.tokens for u in held),
            "supervised": sum(u.supervised for u in held),
            "views": sum(u.views for u in held),
            "seconds": seconds,
            "tokens_per_s": sum(u.tokens for u in held) / seconds,
            "eta": (now - self.began) / self.updates * (self.total - latest.step),
            **means([u.metrics for u in held]),
        }
        self.held, self.last = [], now
        return row

    def totals(self) -> dict[str, float]:
        """Counts of the stage since this process began it."""
        return {
            "updates": self.updates,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "views": self.views,
            "seconds": self.clock() - self.began,
        }


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every name over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
