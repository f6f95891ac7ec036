"""LLaVA-MOSS2's two stages end to end: order, ids, losses of micro-batches, rates, weights, keys.

Tolerances as the case states: losses 1e-5, stage-1 tensors 1e-6, stage-2 tensors 1e-4 (Adam
amplifies rounding where gradients are near zero).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from torch import Tensor

from retinue.convert.internlm import joined, language_rules
from retinue.convert.llava import llava_keys, projector_keys
from retinue.convert.weights import load_pickle
from retinue.data.dataset import open_dataset
from retinue.data.loader import Loader
from retinue.data.plan import EpochPlan, Schedule
from retinue.data.sampler import SAMPLERS, slices
from retinue.data.spec import DataSpec
from retinue.hub.build import build
from retinue.model.freeze import apply_rules
from retinue.model.retinue import Retinue
from retinue.processor import Processor, ProcessorSpec
from retinue.text.template import dump
from retinue.text.versions import policy_for_template, template_for_version, training_template
from retinue.train.prepare import prepare
from retinue.train.schedule import factor
from retinue.train.spec import ComputeSpec, StageSpec
from retinue.train.trainer import Trainer, Update, supervised
from retinue.types import Batch, Example

pytestmark = pytest.mark.golden

CASES = cases("llava-moss2", "*train*", having="training_log.json")
STAGES = ("pretrain", "finetune")
CLIP = 1.0
"""Default of the original's trainer."""
SEED = 42
"""The original's default; its commands may say otherwise."""


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
    def flags(self) -> dict[str, str]:
        words = self.facts["args"]
        pairs = zip(words[::2], words[1::2], strict=True)
        return {flag.removeprefix("--"): value for flag, value in pairs}

    def number(self, flag: str, default: float) -> float:
        return float(self.flags.get(flag, default))

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


def unexpanded(example: Example) -> list[int]:
    """One -200 for each picture, as the original records ids."""
    ids, at = [], 0
    for span in example.spans:
        ids += [*example.tokens[at : span.start], -200]
        at = span.start + span.length
    return ids + example.tokens[at:]


def order_of(command: Command, sizes: Any) -> list[list[int]]:
    """The original's order of each epoch: torch's global generator seeds the sampler's."""
    stage, count = command.stage, len(sizes)
    each = max(count // stage.global_batch, 1)
    epochs = math.ceil(stage.epochs or (stage.steps or 1) / each)
    orders = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(command.number("seed", SEED)))
        for _ in range(epochs):
            torch.empty((), dtype=torch.int64).random_()
            if command.flags.get("group_by_modality_length") == "True":
                order = SAMPLERS.get("llava-modality")().order(
                    sizes,
                    micro_batch=stage.micro_batch,
                    num_micro=stage.global_batch // stage.micro_batch,
                    generator=torch.default_generator,
                )
            else:
                drawn = int(torch.empty((), dtype=torch.int64).random_().item())
                generator = torch.Generator().manual_seed(drawn)
                order = torch.randperm(count, generator=generator).tolist()
            orders.append(order)
    return orders


def steps_of(order: list[int], stage: StageSpec) -> list[list[list[int]]]:
    each = stage.global_batch // stage.micro_batch
    steps = slices(slices(order, stage.micro_batch), each)  # type: ignore[arg-type]
    return [step for step in steps if len(step) == each]  # type: ignore[misc]


class Recorded(Trainer):
    """A trainer that keeps (targets, mean loss) of every micro-batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.micro: list[tuple[float, float]] = []

    def update(self, batches: Sequence[Batch]) -> Update:
        self.per_update = len(batches)
        return super().update(batches)

    def backward(self, batch: Batch, **options: Any) -> Tensor:
        loss = super().backward(batch, **options)
        self.micro.append((supervised(batch), loss.item() * self.per_update))
        return loss


def train(command: Command) -> tuple[Recorded, list[Update], list[list[Example]]]:
    model, processor = start(command)
    flags, stage = command.flags, command.stage
    source = {
        "path": flags["data_path"],
        "format": "llava",
        "media_root": flags["image_folder"],
    }
    spec = DataSpec.parse({"sources": [source]})
    dataset = open_dataset(spec, processor, root=command.case)
    orders = order_of(command, dataset.train.sizes)
    plans = [
        EpochPlan(epoch=epoch, steps=steps_of(order, stage), overlong=[])
        for epoch, order in enumerate(orders)
    ]
    schedule = Schedule(lambda epoch: plans[epoch])
    table = apply_rules(model, stage.trainable, lr=stage.optim.lr)
    prepare(model, compute=ComputeSpec())
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in projector(command).items():
            own[str(projector_keys().to_retinue(name))].copy_(value)
    trainer = Recorded(
        model,
        stage=stage,
        table=table,
        data=Loader(dataset.train, processor=processor, schedule=schedule, spec=spec),
        total=stage.steps or schedule.num_steps(stage.epochs or 1),
    )
    micro = [group for plan in plans for step in plan.steps for group in step]
    examples = [[processor.example(dataset.train[i], train=True) for i in g] for g in micro]
    return trainer, list(trainer.fit()), examples


@pytest.mark.parametrize("command", commands(), ids=str)
def test_stage(command: Command) -> None:
    trainer, updates, examples = train(command)
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
