"""LLaVA-MOSS2's two stages end to end: order, ids, losses of micro-batches, rates, weights, keys.

Tolerances as the case states: losses 1e-5, stage-1 tensors 1e-6, stage-2 tensors 1e-4 (Adam
amplifies rounding where gradients are near zero).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from llava_trainer import Flags, Run, run_stage, unexpanded
from safetensors.torch import load_file
from torch import Tensor

from retinue.convert.internlm import joined, language_rules
from retinue.convert.llava import llava_keys, projector_keys
from retinue.convert.weights import load_pickle
from retinue.hub.build import build
from retinue.model.retinue import Retinue
from retinue.processor import Processor, ProcessorSpec
from retinue.text.template import dump
from retinue.text.versions import policy_for_template, template_for_version, training_template
from retinue.train.schedule import factor
from retinue.train.spec import StageSpec

pytestmark = pytest.mark.golden

CASES = cases("llava-moss2", "*train*", having="training_log.json")
STAGES = ("pretrain", "finetune")
CLIP = 1.0
"""Default of the original's trainer."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One stage of the original, its flags by name."""

    case: Path
    name: str

    def __str__(self) -> str:
        return f"{self.case.name}-{self.name}"

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = read(self.case)[self.name]
        return found

    @property
    def line(self) -> Flags:
        return Flags(words=self.facts["args"])

    @property
    def flags(self) -> dict[str, str]:
        return self.line.by_name

    def number(self, flag: str, default: float) -> float:
        return self.line.number(flag, default)

    @property
    def lm(self) -> Path:
        return self.case / self.flags["model_name_or_path"]

    @property
    def aligns(self) -> bool:
        return self.flags.get("tune_mm_mlp_adapter") == "True"

    @property
    def stage(self) -> StageSpec:
        trainable: dict[str, Any] = {"connector.**": "full"}
        if not self.aligns:
            trainable["lm.**"] = "full"
        if "mm_projector_lr" in self.flags:
            trainable["connector.**"] = {"full": {"lr": self.number("mm_projector_lr", 0)}}
        length = {"steps": int(self.number("max_steps", 0))}
        if not length["steps"]:
            length = {"epochs": int(self.number("num_train_epochs", 3))}
        micro = int(self.number("per_device_train_batch_size", 8))
        return StageSpec.parse(
            {
                "name": self.name,
                "trainable": trainable,
                **length,
                "micro_batch": micro,
                "global_batch": micro * int(self.number("gradient_accumulation_steps", 1)),
                "loss_norm": "micro_batch",
                "idle_visual": "momentum",
                "optim": {
                    "lr": self.number("learning_rate", 0),
                    "weight_decay": self.number("weight_decay", 0),
                    "decay": "llava-moss2",
                    "clip": self.number("max_grad_norm", CLIP),
                },
                "schedule": {
                    "kind": self.flags["lr_scheduler_type"],
                    "warmup": self.number("warmup_ratio", 0),
                },
            }
        )


@cache
def read(case: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case / "training_log.json").read_text())
    return found


def commands() -> list[Command]:
    return [Command(case=case, name=name) for case in CASES for name in STAGES]


def projector(command: Command) -> dict[str, Tensor]:
    """What the stage's projector starts from, in the original's names."""
    if command.aligns:
        return load_file(command.case / "pretrain_init_projector.safetensors")
    found: dict[str, Tensor] = load_pickle(command.case / "expected_mm_projector.bin")
    return found


def start(command: Command) -> tuple[Retinue, Processor]:
    """The language model, the tower and a projector, put together as a user would."""
    flags, names = command.flags, projector(command)
    template = training_template(template_for_version(flags["version"]))
    take = {
        "kind": "take",
        "encoder": "clip",
        "layer": int(command.number("mm_vision_select_layer", -1)),
        "prefix": flags.get("mm_vision_select_feature") == "cls_patch",
    }
    kind: dict[str, Any] = {"kind": "mlp", "depth": len(names) // 2}
    if any(name.endswith("mm_projector.weight") for name in names):
        kind = {"kind": "linear"}
    report = build(
        {
            "lm": {"from": str(command.lm)},
            "encoders": {"clip": {"from": str(command.case / flags["vision_tower"])}},
            "connector": {**kind, "of": take},
            "views": {
                "kind": flags.get("image_aspect_ratio", "square").replace("square", "single")
            },
            "dtype": "fp32",
        }
    )
    model, plain = report.model, report.processor
    spec = plain.spec.model_dump() | {
        "template": dump(template),
        "labels": policy_for_template(template).model_dump(),
    }
    # the original's table keeps a row from learning: that of its padding token, which is eos
    model.lm.get_submodule(model.lm.embed_name).padding_idx = model.config.text_config.pad_token_id
    return model, Processor(model.plan, tokenizer=plain.tokenizer, spec=ProcessorSpec.parse(spec))


def original(command: Command, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names that the original writes."""
    config = json.loads((command.lm / "config.json").read_text())
    keys = llava_keys(language=language_rules(config))
    named = ((str(keys.from_retinue(name)), tensor) for name, tensor in tensors.items())
    heads = config["num_attention_heads"]
    return dict(joined(named, heads=heads, groups=config["num_key_value_heads"] or heads))


def train(command: Command) -> Run:
    model, processor = start(command)
    names = projector_keys()
    return run_stage(
        model,
        processor,
        stage=command.stage,
        flags=command.line,
        root=command.case,
        weights={str(names.to_retinue(key)): value for key, value in projector(command).items()},
    )


@pytest.mark.parametrize("command", commands(), ids=str)
def test_stage(command: Command) -> None:
    run = train(command)
    trainer, updates, examples = run.trainer, run.updates, run.examples
    facts, stage = command.facts, trainer.stage
    recorded = facts["micro_batches"]
    assert len(trainer.micro) == len(recorded) <= len(examples)
    for (count, loss), batch, group in zip(trainer.micro, recorded, examples, strict=False):
        ids = [unexpanded(example) for example in group]
        for row, mine in zip(batch["input_ids"], ids, strict=True):
            assert row[: len(mine)] == mine
            assert not any(row[len(mine) :])
        assert count == batch["n_supervised"]
        if count:  # without a target the original's mean is no number
            assert loss == pytest.approx(batch["loss"], abs=1e-5)
        rate = updates[batch["global_step"]].lr
        assert rate == pytest.approx(batch["lr"], rel=1e-9, abs=1e-15)
        sizes = [[count_theirs(g.names), g.weight_decay] for g in trainer.groups if g.names]
        assert sizes == [group[:2] for group in batch["groups"] if group[0]]
    for update, row in zip(updates, facts["log_history"], strict=False):
        after = factor(update.step, spec=stage.schedule, total=trainer.total) * stage.optim.lr
        assert after == pytest.approx(row["learning_rate"], rel=1e-9, abs=1e-15)
        assert update.loss == pytest.approx(row["loss"], abs=1e-4)
    check_weights(command, trainer.model)
    compared(command.case)


def count_theirs(names: Sequence[str]) -> int:
    """How many parameters the original has for these: three matrices of ours are one of its."""
    return len({re.sub(r"[qkv]_proj", "wqkv", name) for name in names})


def check_weights(command: Command, model: Any) -> None:
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    found = original(command, trained)
    assert set(found) == set(command.facts["trainable"])
    if command.aligns:
        final = load_file(command.case / "pretrain_final_projector.safetensors")
        kept: dict[str, Tensor] = load_pickle(command.case / "expected_mm_projector.bin")
        assert set(found) == set(kept) == set(command.facts["mm_projector_bin"])
        for name, value in found.items():
            (same,) = [final[key] for key in final if name.endswith(key)]
            torch.testing.assert_close(value, same, atol=1e-6, rtol=0)
            torch.testing.assert_close(value, kept[name], atol=1e-6, rtol=0)
        return
    for name, value in load_file(command.case / "expected_finetune_subset.safetensors").items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=0)
    for name, (total, absolute) in command.facts["final_sums"].items():
        flat = found[name].double()
        spread = 1e-4 * flat.numel() ** 0.5 + 1e-5 * absolute
        assert flat.sum().item() == pytest.approx(total, abs=spread), name
        assert flat.abs().sum().item() == pytest.approx(absolute, abs=spread), name
    shapes = {name: list(value.shape) for name, value in found.items()}
    whole = command.facts["pytorch_model_bin"]
    assert {name: whole[name][0] for name in shapes} == shapes
    embedding = model.lm.embed_name
    row = trained[f"lm.{embedding}.weight"][model.config.text_config.pad_token_id]
    before = build_row(command, model)
    assert torch.equal(row, before) != command.facts["eos_row_of_embedding_changed"]


def build_row(command: Command, model: Any) -> Tensor:
    """The padding token's row before training."""
    fresh, _ = start(command)
    table: Any = fresh.lm.get_submodule(fresh.lm.embed_name)
    row: Tensor = table.weight[model.config.text_config.pad_token_id]
    return row.detach()
