"""Checkpoints: written whole or not at all, and everything that a bit-equal resume needs.

<run>/checkpoints/step-00000200/    a complete model folder, and beside its files:
    trainer_state.safetensors       trained weights in fp32, moments, random generators
    trainer_state.json              position: stage, update, data; written last
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from retinue.core.errors import CheckpointError, EnvError
from retinue.hub.files import whole_folder
from retinue.model.freeze import plain

TENSORS = "trainer_state.safetensors"
FACTS = "trainer_state.json"
VERSION = 1
_NAME = re.compile(r"step-(\d+)")


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Where a run stands. `weights`: every parameter that any stage so far has trained."""

    step: int
    stage: int
    stage_step: int
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run folder; the newest `keep` stay.

    write_model: fills a folder with the complete model, or None to store the state alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int | None = 2,
        write_model: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder, self.keep, self.write_model = folder, keep, write_model

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        named = [(int(m[1]), p) for p in found if (m := _NAME.fullmatch(p.name))]
        return [path for _, path in sorted(named) if (path / FACTS).is_file()]

    @property
    def latest(self) -> Path | None:
        return (self.all() or [None])[-1]  # type: ignore[list-item]

    def clear(self) -> None:
        """Remove what a killed process had begun to write."""
        for path in self.folder.glob(".*") if self.folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)

    def save(self, state: TrainState) -> Path:
        """Write one checkpoint, then drop the oldest. Raises EnvError and leaves the others."""
        target = self.folder / f"step-{state.step:08d}"
        if (target / FACTS).is_file():
            return target
        good = self.latest
        try:
            with whole_folder(target) as part:
                if self.write_model is not None:
                    self.write_model(part)
                write_state(part, state)
        except EnvError as error:
            raise EnvError(
                error.what,
                where=str(target),
                rule=error.rule,
                fix=(f"{good} is intact; " if good else "") + "free space, then resume",
            ) from error
        for old in self.all()[: -self.keep] if self.keep else ():
            shutil.rmtree(old, ignore_errors=True)
        return target


def write_state(folder: Path, state: TrainState) -> None:
    """trainer_state.safetensors, then trainer_state.json."""
    tensors: dict[str, Tensor] = {}
    facts = {
        key: _lift(getattr(state, key), key, tensors) for key in TrainState.__dataclass_fields__
    }
    save_file(_apart(tensors), folder / TENSORS)
    (folder / FACTS).write_text(json.dumps({"version": VERSION, **facts}), "utf-8")


def read_state(folder: Path) -> TrainState:
    """The state in a checkpoint folder. Raises CheckpointError where it is missing or broken."""
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
        if facts.pop("version") != VERSION:
            raise ValueError(f"written by another version of retinue (format is not {VERSION})")
        return TrainState(**{key: _lower(value, tensors) for key, value in facts.items()})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            "cannot be resumed from",
            where=str(folder),
            rule=getattr(error, "strerror", None) or str(error),
            fix="name another checkpoint with checkpoint.resume",
        ) from None


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Parameter name -> its moments and counters."""
    states = optimizer.state_dict()["state"]
    return {name: states[k] for k, name in enumerate(_names(optimizer)) if k in states}


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state` gave. Raises CheckpointError for other parameters."""
    names = _names(optimizer)
    unknown = set(state) - set(names)
    if unknown:
        raise CheckpointError(
            f"the optimizer state speaks of {len(unknown)} parameters that do not train now",
            where=min(unknown),
            rule="a run resumes with the trainable rules it was started with",
        )
    groups = optimizer.state_dict()["param_groups"]
    states = {k: state[name] for k, name in enumerate(names) if name in state}
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy trained parameters back into a model. Raises CheckpointError where they do not fit."""
    own = {plain(name): parameter for name, parameter in model.named_parameters()}
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "absent"
            raise CheckpointError(
                "the checkpoint does not fit this model",
                where=name,
                rule=f"it is {tuple(value.shape)} there and {shape} here",
                fix="resume with the recipe and base model the run was started with",
            )
        if own[name].dtype == value.dtype:
            with torch.no_grad():
                own[name].copy_(value)
        else:  # trained in fp32 by an earlier stage, and kept so
            own[name].data = value.to(own[name].device)


def _names(optimizer: Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["names"]]


def _lift(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON data in which each tensor is a reference into `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {str(key): _lift(one, f"{path}/{key}", tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_lift(one, f"{path}/{k}", tensors) for k, one in enumerate(value)]
    return value


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without shared memory, which the format refuses."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return found


def _lower(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"tensor"} and isinstance(value["tensor"], str):
            return tensors[value["tensor"]]
        return {key: _lower(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_lower(one, tensors) for one in value]
    return value
