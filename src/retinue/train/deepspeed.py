"""A DeepSpeed JSON read as settings of a recipe, every key accounted for.

Reference: DeepSpeed's "Configuration JSON" documentation (ZeRO: arXiv 1910.02054).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.core.errors import ConfigError
from retinue.train.spec import RunSpec

SHARD = {0: "none", 1: "keep", 2: "keep", 3: "reshard"}
"""ZeRO's stage -> `parallel.shard`; stage 1 gets its gradients divided as well."""

ALWAYS = {
    "zero_optimization.contiguous_gradients": "gradients are one flat buffer anyway",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "a saved model is always whole",
    "zero_optimization.reduce_scatter": "a matter of the collectives that are used",
    "zero_optimization.offload_optimizer.pin_memory": "offloaded tensors are pinned where they can",
    "zero_optimization.offload_param.pin_memory": "offloaded tensors are pinned where they can",
}
"""Keys that ask for what is so in any case."""

TUNING = {
    "overlap_comm": "FSDP2 overlaps by itself",
    "sub_group_size": "no groups within a rank",
    "reduce_bucket_size": "FSDP2 reduces by layer",
    "allgather_bucket_size": "FSDP2 gathers by layer",
    "allgather_partitions": "FSDP2 gathers by layer",
    "round_robin_gradients": "FSDP2 divides each tensor",
    "stage3_prefetch_bucket_size": "FSDP2 prefetches the next layer",
    "stage3_param_persistence_threshold": "FSDP2 divides small tensors as well",
    "stage3_max_live_parameters": "FSDP2 frees a layer after use",
    "stage3_max_reuse_distance": "FSDP2 frees a layer after use",
}
"""Speed settings of ZeRO that have no counterpart."""


@dataclass(slots=True, kw_only=True)
class Mapped:
    """overrides: what the recipe takes over; lines: one on each key, also those without effect."""

    overrides: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def take(self, key: str, value: Any, *paths: str) -> None:
        """A key that becomes settings."""
        self.overrides += [f"{path}={json.dumps(value)}" for path in paths]
        self.lines.append(f"{key} -> {', '.join(self.overrides[-len(paths) :])}")

    def keep(self, key: str, why: str) -> None:
        """A key that changes nothing because it is so already."""
        self.lines.append(f"{key}: {why}")

    def drop(self, key: str, why: str) -> None:
        """A key without counterpart."""
        self.unmapped.append(key)
        self.lines.append(f"{key} not mapped: {why}")


def read_deepspeed(file: Path, spec: RunSpec) -> Mapped:
    """The settings of a DeepSpeed JSON for a recipe. "auto" leaves them to the recipe.

    Raises ConfigError for no JSON object, an unknown ZeRO stage, or batch sizes that contradict the
    recipe's.
    """
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no readable JSON ({error})", where=str(file)) from error
    if not isinstance(data, dict):
        raise ConfigError("no JSON object", where=str(file))
    mapped, stages = Mapped(), [stage.name for stage in spec.train.stages]
    for key, value in flat(data):
        leaf = key.rpartition(".")[2]
        if value == "auto":
            mapped.keep(key, "auto, the recipe decides")
        elif key in ALWAYS:
            mapped.keep(key, ALWAYS[key])
        elif leaf in TUNING and key.startswith("zero_optimization."):
            mapped.drop(key, TUNING[leaf])
        elif key == "zero_optimization.stage":
            if value not in SHARD:
                raise ConfigError(f"{key} {value!r}", where=str(file), rule="known: 0, 1, 2, 3")
            mapped.take(key, SHARD[value], "parallel.shard")
        elif leaf == "device" and "offload" in key:
            _offload(mapped, key, str(value))
        elif key == "bf16.enabled":
            mapped.take(key, "bf16" if value else "fp32", "train.precision")
        elif key.startswith("fp16."):
            off = data["fp16"].get("enabled") in (False, "auto")
            why = "fp16 is not used" if off else "training in fp16 is not offered, use bf16"
            (mapped.keep if off else mapped.drop)(key, why)
        elif key == "gradient_clipping":
            clip = float(value) or None
            mapped.take(key, clip, *(f"train.stages.{name}.optim.clip" for name in stages))
        elif key == "optimizer.type":
            _optimizer(mapped, key, str(value), spec)
        elif key in OPTIM:
            kept = list(value) if isinstance(value, list) else float(value)
            mapped.take(key, kept, *(f"train.stages.{name}.optim.{leaf}" for name in stages))
        elif key.startswith("scheduler."):
            mapped.drop(key, "the recipe's schedule stands")
        elif key in BATCHES:
            _batches(mapped, key, int(value), spec, where=str(file))
        else:
            mapped.drop(key, "retinue has no such setting")
    return mapped


def flat(data: Mapping[str, Any], *, under: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, under=f"{under}{key}.")
        else:
            yield f"{under}{key}", value


def _offload(mapped: Mapped, key: str, device: str) -> None:
    if device == "nvme":
        mapped.drop(key, "offloading to disk is not offered")
    elif device == "cpu":
        if "parallel.offload=true" in mapped.overrides:
            mapped.keep(key, "parallel.offload covers weights and optimizer together")
        else:
            mapped.take(key, True, "parallel.offload")
    else:
        mapped.keep(key, "nothing is offloaded")


OPTIM = tuple(f"optimizer.params.{name}" for name in ("lr", "betas", "eps", "weight_decay"))
"""Numbers that an optimizer of the recipe has under the same names."""


def _optimizer(mapped: Mapped, key: str, kind: str, spec: RunSpec) -> None:
    own = sorted({stage.optim.kind for stage in spec.train.stages})
    if own == [kind.lower()]:
        mapped.keep(key, "as in the recipe")
    else:
        mapped.drop(key, f"the recipe's optim.kind stands: {', '.join(own)}")


BATCHES = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
)


def _batches(mapped: Mapped, key: str, value: int, spec: RunSpec, *, where: str) -> None:
    """Batch sizes are the recipe's; numbers that agree are kept, others contradict it."""
    for stage in spec.train.stages:
        if key == "gradient_accumulation_steps":
            continue
        own = stage.micro_batch if "micro" in key else stage.global_batch
        if own != value:
            name = "micro_batch" if "micro" in key else "global_batch"
            raise ConfigError(
                f"{key} {value}",
                where=where,
                rule=f"the recipe says {name} {own} in stage {stage.name!r}",
                fix=f'write "auto", or set train.stages.{stage.name}.{name}={value}',
            )
    if key == "gradient_accumulation_steps":
        mapped.drop(key, "follows from global_batch, micro_batch and the number of processes")
    else:
        mapped.keep(key, "as in the recipe")
