"""What the training goldens of LLaVA, M3 and MOSS2 share: flags, order of samples, a recorder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retinue.data.dataset import open_dataset
from retinue.data.loader import Loader
from retinue.data.plan import EpochPlan, Schedule
from retinue.data.sampler import SAMPLERS, slices
from retinue.data.spec import DataSpec
from retinue.model.freeze import apply_rules
from retinue.model.retinue import Retinue
from retinue.parallel.spec import ParallelSpec
from retinue.processor import Processor
from retinue.train.prepare import prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer, Update, supervised
from retinue.types import Batch, Example

SEED = 42
"""The original's default; its commands may say otherwise."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """A command line of the original, its flags by name."""

    words: Sequence[str]

    @property
    def by_name(self) -> dict[str, str]:
        pairs = zip(self.words[::2], self.words[1::2], strict=True)
        return {flag.removeprefix("--"): value for flag, value in pairs}

    def number(self, flag: str, default: float) -> float:
        return float(self.by_name.get(flag, default))

    def on(self, flag: str) -> bool:
        return self.by_name.get(flag, "False") == "True"


class Recorded(Trainer):
    """A trainer that keeps (targets, mean loss) of every micro-batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.micro: list[tuple[float, float]] = []

    def update(self, batches: Sequence[Batch]) -> Update:
        self.per_update = len(batches)
        return super().update(batches)

    def backward(self, batch: Batch, **options: Any) -> torch.Tensor:
        loss = super().backward(batch, **options)
        self.micro.append((supervised(batch), loss.item() * self.per_update))
        return loss


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training: its trainer, its updates, the examples of each micro-batch."""

    trainer: Recorded
    updates: list[Update]
    examples: list[list[Example]]


def unexpanded(example: Example) -> list[int]:
    """One -200 for each picture, as the original records ids."""
    ids, at = [], 0
    for span in example.spans:
        ids += [*example.tokens[at : span.start], -200]
        at = span.start + span.length
    return ids + example.tokens[at:]


def orders_of(flags: Flags, sizes: Any, *, stage: StageSpec, epochs: int) -> list[list[int]]:
    """The original's order of each epoch.

    Its samplers draw from torch's global generator, after the data loader drew a seed for workers.
    """
    orders = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(flags.number("seed", SEED)))
        for _ in range(epochs):
            torch.empty((), dtype=torch.int64).random_()
            if flags.on("group_by_modality_length"):
                order = SAMPLERS.get("llava-modality")().order(
                    sizes,
                    micro_batch=stage.micro_batch,
                    num_micro=stage.global_batch // stage.micro_batch,
                    generator=torch.default_generator,
                )
            else:
                drawn = int(torch.empty((), dtype=torch.int64).random_().item())
                generator = torch.Generator().manual_seed(drawn)
                order = torch.randperm(len(sizes), generator=generator).tolist()
            orders.append(order)
    return orders


def steps_of(order: list[int], stage: StageSpec) -> list[list[list[int]]]:
    """Updates of an epoch; the original makes none of micro-batches that are left over."""
    each = stage.global_batch // stage.micro_batch
    steps = slices(slices(order, stage.micro_batch), each)  # type: ignore[arg-type]
    return [step for step in steps if len(step) == each]  # type: ignore[misc]


def run_stage(
    model: Retinue,
    processor: Processor,
    *,
    stage: StageSpec,
    flags: Flags,
    root: Path,
    weights: Mapping[str, torch.Tensor],
) -> Run:
    """Train a stage in the original's order, from `weights` (our names) where they are given."""
    source = {
        "path": flags.by_name["data_path"],
        "format": "llava",
        "media_root": flags.by_name["image_folder"],
    }
    spec = DataSpec.parse({"sources": [source]})
    dataset = open_dataset(spec, processor, root=root)
    sizes = dataset.train.sizes
    an_epoch = max(len(sizes) // stage.global_batch, 1)
    epochs = math.ceil(stage.epochs or (stage.steps or an_epoch) / an_epoch)
    orders = orders_of(flags, sizes, stage=stage, epochs=epochs)
    plans = [
        EpochPlan(epoch=epoch, steps=steps_of(order, stage), overlong=[])
        for epoch, order in enumerate(orders)
    ]
    schedule = Schedule(lambda epoch: plans[epoch])
    table = apply_rules(model, stage.trainable, lr=stage.optim.lr)
    prepare(model, compute=ParallelSpec())
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    trainer = Recorded(
        model,
        stage=stage,
        table=table,
        data=Loader(dataset.train, processor=processor, schedule=schedule, spec=spec),
        total=stage.steps or schedule.num_steps(stage.epochs or 1),
    )
    micro = [group for plan in plans for step in plan.steps for group in step]
    examples = [[processor.example(dataset.train[i], train=True) for i in g] for g in micro]
    return Run(trainer=trainer, updates=list(trainer.fit()), examples=examples)
