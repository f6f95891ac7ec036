"""The sides of bench_train: transformers' Trainer and our training loop, on the same samples."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import common
import peer
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, TrainingArguments
from transformers import Trainer as HfTrainer

from retinue.model.freeze import apply_rules
from retinue.model.retinue import Retinue
from retinue.ops.malloc import tune_malloc
from retinue.parallel.spec import ParallelSpec
from retinue.train.prepare import prepare
from retinue.train.spec import StageSpec
from retinue.train.trainer import Trainer
from retinue.types import Batch, Example

RATE = 1e-4
BF16_LOSS = 2e-3
TRAINABLE = {"encoders.**": "frozen", "connector.**": "full", "lm.**": "full"}


@dataclass(slots=True)
class Memo:
    """What the last call of a side saw: per batch the mean loss and the gradient norm."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


def agree(memo: Mapping[str, Memo], *, peer: str, what: str) -> dict[str, Any]:
    """Losses and norms of every side; exit code 1 where a loss differs by more than 2e-3."""
    for name, found in memo.items():
        for number, (loss, wanted) in enumerate(zip(found.losses, memo[peer].losses, strict=True)):
            off = abs(loss - wanted)
            common.require(off <= BF16_LOSS, f"{what}, {name}, loss {number}: off by {off:.2g}")
    return {
        name: {"losses": found.losses, "gradient_norms": found.norms}
        for name, found in memo.items()
    }


def usual_malloc() -> None:
    """glibc as a program finds it once its large buffers have raised the dynamic thresholds.

    Setting them ends their own adjustment, so these are its upper limits (`mallopt(3)`): the most
    that glibc does for a program that does not set it up.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    for option, value in ((mmap_max, 65536), (mmap_threshold, 2**25), (trim_threshold, 2**26)):
        libc.mallopt(option, value)
    libc.malloc_trim(0)


def gradient_norm(model: nn.Module) -> float:
    return float(
        nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    )


# ---------------------------------------------------------------- transformers


def arguments(folder: str, *, steps: int, rows: int, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        per_device_train_batch_size=rows,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **{"optim": "adamw_torch_fused", **more},
    )


class InOrder(HfTrainer):
    """Trainer on samples in the order given, as ours sees them; its log stays silent."""

    seen: list[dict[str, float]]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        self.seen.append(logs)


class StepSide:
    """Gradients of every batch by `Trainer.training_step`, from zero each."""

    def __init__(
        self,
        theirs: LlavaForConditionalGeneration,
        batches: Sequence[list[Example]],
        *,
        dims: peer.Dims,
        model: Retinue,
        memo: Memo,
        tuned: bool = False,
    ) -> None:
        self.theirs, self.memo = theirs, memo
        self.malloc = tune_malloc if tuned else usual_malloc
        self.inputs = [peer.padded(batch, model, dtype=torch.float32) for batch in batches]
        folder = tempfile.mkdtemp()
        self.trainer = HfTrainer(theirs, arguments(folder, steps=1, rows=len(batches[0])))
        self.trainer.current_gradient_accumulation_steps = 1
        # what `train` does before its first step; without it the step would run in fp32
        self.prepared = self.trainer.accelerator.prepare_model(theirs.train())

    def __call__(self) -> None:
        self.malloc()
        self.memo.losses.clear()
        self.memo.norms.clear()
        for inputs in self.inputs:
            self.theirs.zero_grad(set_to_none=True)
            loss = self.trainer.training_step(self.prepared, dict(inputs))
            self.memo.losses.append(float(loss))
            self.memo.norms.append(gradient_norm(self.theirs))


class TrainSide:
    """`Trainer.train` over the batches, from the same weights at every call."""

    def __init__(
        self,
        theirs: LlavaForConditionalGeneration,
        batches: Sequence[list[Example]],
        *,
        start: Mapping[str, Tensor],
        model: Retinue,
        memo: Memo,
    ) -> None:
        self.theirs, self.memo, self.start, self.model = theirs, memo, start, model
        self.samples = [example for batch in batches for example in batch]
        self.steps, self.rows = len(batches), len(batches[0])

    def collate(self, examples: list[Example]) -> dict[str, Any]:
        return peer.padded(examples, self.model, dtype=torch.float32)

    def __call__(self) -> None:
        usual_malloc()
        self.theirs.load_state_dict(self.start)
        with tempfile.TemporaryDirectory() as folder:
            trainer = InOrder(
                self.theirs,
                arguments(folder, steps=self.steps, rows=self.rows),
                train_dataset=self.samples,  # type: ignore[arg-type]
                data_collator=self.collate,
            )
            trainer.seen = []
            trainer.train()
        rows = [row for row in trainer.seen if "grad_norm" in row]
        self.memo.losses[:] = [row["loss"] for row in rows]
        self.memo.norms[:] = [float(row["grad_norm"]) for row in rows]


# ---------------------------------------------------------------- ours


class Given:
    """The batches as a loader of one micro-batch a step; packing is part of every step."""

    def __init__(self, batches: Sequence[list[Example]]) -> None:
        self.batches = batches

    def steps(self, stop: int | None = None) -> Iterator[tuple[int, list[Batch]]]:
        for number, examples in enumerate(self.batches[:stop]):
            yield number, [peer.packed(examples)]

    def seek(self, step: int) -> None:
        assert step == 0

    def state(self) -> dict[str, int]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert not state


class FitSide:
    """Our `Trainer` over the batches: gradients only, or whole updates."""

    def __init__(
        self, model: Retinue, batches: Sequence[list[Example]], *, memo: Memo, compiled: bool
    ) -> None:
        self.model, self.memo, self.batches = model, memo, batches
        self.start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.stage = StageSpec.parse(
            {
                "name": "sft",
                "trainable": TRAINABLE,
                "steps": len(batches),
                "global_batch": len(batches[0]),
                "optim": {"lr": RATE, "clip": 1.0},
                "schedule": {"kind": "constant"},
            }
        )
        self.table = apply_rules(model, self.stage.trainable, lr=RATE)
        prepare(model, compute=ParallelSpec(compile=compiled))

    def trainer(self) -> Trainer:
        return Trainer(
            self.model,
            stage=self.stage,
            table=self.table,
            data=Given(self.batches),
            total=len(self.batches),
            precision="bf16",
        )

    def gradients(self) -> None:
        """Forward and backward of every batch, from zero each."""
        tune_malloc()
        trainer = self.trainer()
        self.memo.losses.clear()
        self.memo.norms.clear()
        for _, (batch,) in trainer.data.steps():
            self.model.zero_grad(set_to_none=True)
            assert batch.supervised is not None
            loss = trainer.backward(batch, divisor=len(batch.supervised), pictures=True, metrics={})
            self.memo.losses.append(float(loss))
            self.memo.norms.append(gradient_norm(self.model))

    def updates(self) -> None:
        """Whole optimizer steps, from the same weights at every call."""
        tune_malloc()
        self.model.load_state_dict(self.start)
        found = list(self.trainer().fit())
        self.memo.losses[:] = [update.loss for update in found]
        self.memo.norms[:] = [update.grad_norm for update in found]
