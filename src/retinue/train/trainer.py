"""The loop of one stage: fetch, count, forward and backward, clip, check, update, say.

The loss of an update is a sum over all its supervised tokens, divided as `loss_norm` says, so that
accumulation, packing and ranks do not change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retinue.core.errors import RetinueError
from retinue.model.freeze import TrainableTable
from retinue.parallel.ranks import Ranks
from retinue.train.idle import IDLE
from retinue.train.norm import LOSS_NORMS
from retinue.train.objectives import OBJECTIVES
from retinue.train.objectives.base import Objective
from retinue.train.optim import make_optimizer, set_rates
from retinue.train.prepare import finite, visual_parameters
from retinue.train.rows import Rows
from retinue.train.schedule import factor
from retinue.train.spec import StageSpec
from retinue.train.weigh import weighed
from retinue.types import Batch, Output


class Steps(Protocol):
    """What the loop asks of a loader; `data.loader.Loader` is one."""

    def steps(self, stop: int | None = None) -> Iterator[tuple[int, list[Batch]]]: ...
    def seek(self, step: int) -> None: ...
    def state(self) -> dict[str, int]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One optimizer step, sums over all ranks. `step` counts from 1 within the stage.

    lr: of the first group, as it was used; grad_norm: before clipping; tokens: without padding.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    supervised: float
    views: int
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains the parameters of a table for `total` updates on the batches of `data`.

    model: a prepared Retinue on its device; precision bf16 runs the forward under autocast; seed:
    of what the objective draws.
    """

    def __init__(
        self,
        model: Any,
        *,
        stage: StageSpec,
        table: TrainableTable,
        data: Steps,
        total: int,
        precision: str = "fp32",
        ranks: Ranks | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.stage, self.table, self.data = model, stage, table, data
        self.total, self.precision, self.ranks = total, precision, ranks or Ranks()
        self.seed = seed
        self.device: torch.device = self.ranks.device or next(model.parameters()).device
        self.objective: Objective = OBJECTIVES.get(stage.objective.kind)(stage.objective)
        self.objective.check(model)
        self.ranks.check(self.objective)
        self.optimizer, self.groups = make_optimizer(model, table, spec=stage.optim)
        self.rows = Rows(model, table.rows_of)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.visual: Sequence[nn.Parameter] = visual_parameters(model)
        self.step = 0

    def fit(self) -> Iterator[Update]:
        """Updates until the stage is done; the caller logs, saves or stops between them."""
        if self.step >= self.total:
            return
        for number, batches in self.data.steps(self.total):
            assert number == self.step, f"data is at step {number}, training at {self.step}"
            yield self.update(batches)

    def update(self, batches: Sequence[Batch]) -> Update:
        """One optimizer step over this rank's micro-batches. Raises RetinueError if not finite."""
        counts = [supervised(batch) for batch in batches]
        total, views, tokens, micro_batches = self.ranks.total(
            [
                sum(counts),
                sum(number_of_views(batch) for batch in batches),
                sum(batch.num_real for batch in batches),
                len(batches),
            ]
        )
        divisors = LOSS_NORMS[self.stage.loss_norm](
            counts, total=total, micro_batches=int(micro_batches)
        )
        if self.stage.loss_weights:
            batches = weighed(batches, self.stage.loss_weights, ranks=self.ranks)
            divisors = [1.0] * len(batches)
        self.objective.begin(self.step, seed=self.seed)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        metrics: dict[str, Tensor] = {}
        if total:
            seen = self.ranks.largest([int(batch.visual is not None) for batch in batches])
            for batch, divisor, pictures in zip(batches, divisors, seen, strict=True):
                loss += self.backward(
                    batch.to(self.device),
                    divisor=divisor,
                    pictures=bool(pictures),
                    metrics=metrics,
                )
            self.ranks.add_gradients(self.model)
            self.ranks.release()
        self.rows.still()
        if not views:
            IDLE[self.stage.idle_visual](self.visual)
        norm = self.ranks.clip(self.parameters, self.stage.optim.clip).to(self.device)
        lost, grad_norm, *values = finite([loss, norm, *metrics.values()])
        (lost,) = self.ranks.total([lost])
        self.check(lost, grad_norm, batches)
        rate = factor(self.step, spec=self.stage.schedule, total=self.total)
        set_rates(self.optimizer, rate)
        self.optimizer.step()
        self.step += 1
        return Update(
            step=self.step,
            loss=lost,
            lr=self.groups[0].lr * rate,
            grad_norm=grad_norm,
            tokens=int(tokens),
            supervised=total,
            views=int(views),
            metrics={k: v / len(batches) for k, v in zip(metrics, values, strict=True)},
        )

    def backward(
        self, batch: Batch, *, divisor: float, pictures: bool, metrics: dict[str, Tensor]
    ) -> Tensor:
        """Add a micro-batch's gradients; returns its share of the loss, detached."""
        total = torch.zeros((), device=self.device)
        parts = self.ranks.parts(self.objective, self.model, batch, pictures=pictures)
        while (output := self.forward(parts)) is not None:
            assert output.loss_sum is not None, "an objective returns loss_sum"
            loss = output.loss_sum / divisor
            if loss.requires_grad:
                loss.backward()
            total += loss.detach()
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, torch.zeros_like(value)) + value.detach()
        return total

    def forward(self, parts: Iterator[Output]) -> Output | None:
        """The next part of an objective, under autocast; None after the last."""
        with self.autocast():
            return next(parts, None)

    def autocast(self) -> torch.autocast:
        """bf16 products over fp32 weights, or nothing."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def check(self, loss: float, grad_norm: float, batches: Sequence[Batch]) -> None:
        """The weights are untouched when this raises."""
        if loss - loss == 0 and grad_norm - grad_norm == 0:
            return
        ids = ", ".join(name for batch in batches for name in batch.ids[:4])
        raise RetinueError(
            f"the loss is {loss} and the gradient norm {grad_norm}",
            where=f"stage {self.stage.name}, update {self.step + 1}, samples {ids}",
            rule="both must be finite; the weights were not updated",
            fix="lower optim.lr, set optim.clip, or look at these samples",
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> tuple[float, float]:
        """(mean loss over supervised tokens, their number) without training."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        total, count = 0.0, 0.0
        for batch in batches:
            (pictures,) = self.ranks.largest([int(batch.visual is not None)])
            with self.autocast():
                output = self.ranks.output(
                    self.objective, self.model, batch.to(self.device), pictures=bool(pictures)
                )
            assert output.loss_sum is not None
            total += float(output.loss_sum)
            count += supervised(batch)
        self.ranks.release()
        for module, training in modes.items():
            module.training = training
        total, count = self.ranks.total([total, count])
        return total / max(count, 1.0), count


def supervised(batch: Batch) -> float:
    """Targets of a batch, weighted where it has weights."""
    if batch.supervised is None:
        return 0.0
    if batch.weights is None:
        return float(len(batch.supervised))
    return float(batch.weights.flatten()[batch.supervised].sum())


def number_of_views(batch: Batch) -> int:
    """Pictures' views in a batch."""
    return sum(batch.visual.num_views) if batch.visual is not None else 0
