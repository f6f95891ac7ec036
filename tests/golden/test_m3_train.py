"""The trainers of LLaVA and M3 end to end: order, ids, losses of micro-batches, rates, weights.

Runs: stage 1 (projector), full fine-tuning, LoRA, M3's fine-tuning at several scales. Losses
and weights to 2e-4, as the case states: the base is stored in fp16 and the original ran another
attention kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from llava_trainer import Flags, Run, run_stage, unexpanded
from safetensors.torch import load_file

from retinue.convert.llava import ENCODER, llava_keys
from retinue.hub.load import load
from retinue.model.nest import make_elastic
from retinue.model.retinue import Retinue
from retinue.processor import Processor, ProcessorSpec
from retinue.text.template import dump
from retinue.text.versions import policy_for_template, template_for_version, training_template
from retinue.train.schedule import factor
from retinue.train.spec import StageSpec, accumulation

pytestmark = pytest.mark.golden

CASES = cases("m3-llava", "*train*", having="train.json")
RUNS = ("pretrain", "finetune_llava", "lora_llava", "finetune_m3")
COMMAND = {"lora_llava": ("lora",), "finetune_m3": ("finetune_llava", "m3_extra")}
"""Run -> the commands whose flags it got, where they have other names."""
SCALES, TOWER = "matryoshka_vis_token_scale", "unfreeze_mm_vision_tower"
TOLERANCE = {"atol": 2e-4, "rtol": 0.0}
CLIP = 1.0
"""Default of the original's trainer outside of DeepSpeed."""
WRAP = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the original, its flags by name."""

    case: Path
    name: str
    form: str = "packed"

    def __str__(self) -> str:
        return f"{self.case.name}-{self.name}" + f"-{self.form}" * bool(self.scales)

    @property
    def scales(self) -> list[int]:
        return [int(scale) for scale in self.flags.get(SCALES, "").split(",") if scale]

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = read(self.case)[self.name]
        return found

    @property
    def line(self) -> Flags:
        commands = read(self.case)["commands"]
        names = COMMAND.get(self.name, (self.name,))
        return Flags(words=[word for name in names for word in commands[name]])

    @property
    def flags(self) -> dict[str, str]:
        return self.line.by_name

    def number(self, flag: str, default: float) -> float:
        return self.line.number(flag, default)

    def on(self, flag: str) -> bool:
        return self.line.on(flag)

    @property
    def stage(self) -> StageSpec:
        trainable: dict[str, Any] = {"connector.**": "full"}
        if self.on("lora_enable"):
            lora = {key: self.number(f"lora_{key}", 0) for key in ("r", "alpha", "dropout")}
            trainable["lm.**"] = {"lora": lora}
        elif not self.on("tune_mm_mlp_adapter"):
            trainable["lm.**"] = "full"
        if "mm_projector_lr" in self.flags:
            trainable["connector.**"] = {"full": {"lr": self.number("mm_projector_lr", 0)}}
        if self.on(TOWER):
            rate = self.number("mm_vision_tower_lr", self.number("learning_rate", 0))
            trainable["encoders.**"] = {"full": {"lr": rate}}
        micro = int(self.number("per_device_train_batch_size", 8))
        return StageSpec.parse(
            {
                "name": self.name,
                "trainable": trainable,
                # the original's tower runs without gradients, also where it is trainable
                "objective": {"kind": "elastic", "tower": "still", "form": self.form}
                if self.scales
                else {"kind": "sft"},
                "epochs": self.number("num_train_epochs", 3),
                "micro_batch": micro,
                "global_batch": micro * int(self.number("gradient_accumulation_steps", 1)),
                "loss_norm": "micro_batch",
                "idle_visual": "momentum",
                "optim": {
                    "lr": self.number("learning_rate", 0),
                    "weight_decay": self.number("weight_decay", 0),
                    "decay": "llava",
                    "clip": CLIP,
                },
                "schedule": {
                    "kind": self.flags["lr_scheduler_type"],
                    "warmup": self.number("warmup_ratio", 0),
                },
            }
        )


@cache
def read(case: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case / "train.json").read_text())
    return found


def runs() -> list[Command]:
    found = [Command(case=case, name=name) for case in CASES for name in RUNS if name in read(case)]
    return found + [replace(one, form="accumulated") for one in found if one.scales]


def our_name(theirs: str) -> str:
    found = llava_keys().to_retinue(theirs.removeprefix(WRAP))
    assert found is not None, theirs
    return found


def start(command: Command) -> tuple[Retinue, Processor]:
    """Base LM, tower and projector of the case, and the processor of the command's version."""
    flags = command.flags
    stage1 = read(command.case)["commands"]["pretrain"]
    folder = command.case / stage1[stage1.index("--output_dir") + 1]
    model, plain = load(
        folder,
        base=command.case / flags["model_name_or_path"],
        encoders={ENCODER: command.case / flags["vision_tower"]},
        dtype=torch.float32,
    )
    if command.scales:
        make_elastic(model, scales=command.scales, rounding="original")
    template = training_template(template_for_version(flags["version"]))
    limit = int(command.number("model_max_length", 512))
    spec: dict[str, Any] = plain.spec.model_dump() | {
        "template": dump(template),
        "labels": policy_for_template(template, max_length=limit).model_dump(),
        "max_tokens": limit,
    }
    if flags.get("image_aspect_ratio") == "pad":
        spec["views"] = {"kind": "pad"}
    return model, Processor(model.plan, tokenizer=plain.tokenizer, spec=ProcessorSpec.parse(spec))


def initial(command: Command) -> dict[str, torch.Tensor]:
    """Weights right before the first step, our names."""
    file = command.case / f"init_{command.name}.safetensors"
    if not file.exists():  # M3's run began as the one whose flags it has
        file = command.case / f"init_{COMMAND[command.name][0]}.safetensors"
    return {ours(name, command): value for name, value in load_file(file).items()}


def ours(theirs: str, command: Command) -> str:
    """Our name of a parameter in this run's model: an elastic connector holds the projector."""
    name = our_name(theirs)
    return name.replace("connector.", "connector.of.", 1) if command.scales else name


def train(command: Command) -> Run:
    model, processor = start(command)
    return run_stage(
        model,
        processor,
        stage=command.stage,
        flags=command.line,
        root=command.case,
        weights=initial(command),
    )


def without_padding(row: list[int], length: int) -> list[int]:
    assert len(set(row[length:])) <= 1
    return row[:length]


@pytest.mark.parametrize("command", runs(), ids=str)
def test_run(command: Command) -> None:
    run = train(command)
    trainer, updates, examples = run.trainer, run.updates, run.examples
    facts, stage = command.facts, trainer.stage
    recorded = facts["batches"]
    assert len(trainer.micro) == len(examples) > 0
    for (count, loss), batch, group in zip(trainer.micro, recorded, examples, strict=False):
        ids = [unexpanded(example) for example in group]
        rows = batch["input_ids"]
        assert ids == [without_padding(r, len(i)) for r, i in zip(rows, ids, strict=True)]
        assert count == batch["n_supervised"]
        assert loss == pytest.approx(batch["loss"], abs=2e-4)
    compared(command.case)
    for update, row in zip(updates, facts["log_history"], strict=False):
        assert update.step == row["step"]
        # logged after the update, so it is the rate of the next one; the loss has four digits
        rate = factor(update.step, spec=stage.schedule, total=trainer.total) * stage.optim.lr
        assert rate == pytest.approx(row["learning_rate"], rel=1e-9, abs=1e-15)
        assert update.loss == pytest.approx(row["loss"], abs=2.5e-4)
    for update, row in zip(updates[1:], facts["log_history"], strict=False):
        assert update.lr == pytest.approx(row["learning_rate"], rel=1e-9, abs=1e-15)
    assert set(trainer.table.names) == {ours(name, command) for name in facts["trainable"]}
    check_weights(command, dict(trainer.model.named_parameters()))


def check_weights(command: Command, own: dict[str, torch.Tensor]) -> None:
    """Everything that the case keeps of the finished model."""
    for theirs, total in command.facts["param_abs_sum_after"].items():
        value = own[ours(theirs, command)].detach().double()
        assert value.abs().sum().item() == pytest.approx(total, abs=2e-4 * value.numel(), rel=1e-4)
    for theirs, expected in final_weights(command):
        torch.testing.assert_close(
            own[ours(theirs, command)].detach(), expected.float(), **TOLERANCE
        )


def final_weights(command: Command) -> Iterator[tuple[str, torch.Tensor]]:
    """(original name, weight) from after.safetensors and from the files the run left."""
    for key, value in load_file(command.case / "after.safetensors").items():
        if key.startswith(f"{command.name}."):
            yield key.removeprefix(f"{command.name}."), value
    folder = command.case / command.flags["output_dir"]
    for name in ("mm_projector.bin", "non_lora_trainables.bin"):
        if (folder / name).exists():
            yield from torch.load(folder / name, weights_only=True).items()
    if (folder / "adapter_model.safetensors").exists():
        for key, value in load_file(folder / "adapter_model.safetensors").items():
            yield (
                key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
                value,
            )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_accumulation_is_derived(case: Path) -> None:
    for command in runs():
        if command.case == case:
            stage = command.stage
            times = accumulation(global_batch=stage.global_batch, micro_batch=stage.micro_batch)
            assert times == command.number("gradient_accumulation_steps", 1)
