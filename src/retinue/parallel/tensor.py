"""Tensor parallelism: every decoder layer's matrices divided among the ranks of one group.

Encoders, connectors, embeddings, head and norms stay whole on every rank (SPHINX does the same).
Activations between layers are whole, too, so the path, its fusions and its loss do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from retinue.parallel.plan import TensorPlan, plan_of
from retinue.parallel.tensor_layers import Divided, divide, restore
from retinue.parallel.tensor_split import Cut, cuts, whole


def parallelize(model: nn.Module, mesh: DeviceMesh) -> TensorPlan:
    """Divide a loaded Retinue among the ranks of a one-dimensional mesh, in place.

    Every rank holds the same model before; afterwards divided parameters are DTensors over `mesh`,
    trainable or frozen as they were. May be called again, for adapters that came later. Raises
    ConfigError as `plan_of` does; the model is then as it was.
    """
    plan = plan_of(model, size=mesh.size())
    with torch.no_grad():
        for name, split in plan.splits.items():
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            old = owner._parameters[leaf]
            assert old is not None
            if not isinstance(old, DTensor):
                part = split.cut(old.detach(), mesh.get_local_rank(), of=mesh.size())
                put(owner, leaf, split.shard(part, mesh), grad=old.requires_grad)
    apply(model, plan, mesh)
    return plan


class Divider:
    """Divides a model while it is read: what `hub.load` asks, name by name.

    model: a Retinue without weights. Raises ConfigError as `plan_of` does.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self.model, self.mesh = model, mesh
        self.plan = plan_of(model, size=mesh.size())
        self.splits = self.plan.splits

    def divides(self, name: str) -> bool:
        """Whether each rank holds a part of this parameter only."""
        return name in self.splits

    def ranges(self, name: str) -> tuple[int, list[tuple[int, int]]]:
        """The dimension, and [start, stop) of what this rank holds of it."""
        split = self.splits[name]
        return split.dim, split.ranges(self.mesh.get_local_rank(), of=self.mesh.size())

    def shapes(self) -> dict[str, Tensor]:
        """Name -> a tensor on meta with the whole shape, of every parameter that is divided."""
        whole = dict(self.model.named_parameters())
        return {name: torch.empty(whole[name].shape, device="meta") for name in self.splits}

    def finish(self) -> None:
        """All parts are there, and adapters if there are any: make the modules work on them.

        Until then parts are plain tensors and layers say their whole sizes, which adapters take.
        """
        for name, split in self.splits.items():
            path, _, leaf = name.rpartition(".")
            owner: Any = self.model.get_submodule(path)
            owner = getattr(owner, "base_layer", owner)
            part = owner._parameters[leaf]
            put(owner, leaf, split.shard(part.detach(), self.mesh), grad=part.requires_grad)
        parallelize(self.model, self.mesh)


def put(owner: nn.Module, leaf: str, value: Tensor, *, grad: bool) -> None:
    """A parameter in the place of another."""
    owner._parameters[leaf] = nn.Parameter(value, requires_grad=grad)


def apply(model: nn.Module, plan: TensorPlan, mesh: DeviceMesh) -> None:
    """Make the modules of a plan work on their parts, which are there already."""
    for path, part in plan.parts.items():
        module = model.get_submodule(path)
        if not isinstance(module, Divided):
            divide(module, style=part.style, mesh=mesh, splits=part.splits)
    for path, numbers in plan.counts.items():
        owner: Any = model.get_submodule(path)
        if "tensor_heads" in vars(owner):
            continue
        owner.tensor_heads = numbers
        for name, number in numbers.items():
            setattr(owner, name, number)
        if path in plan.configs:
            owner.tensor_config = owner.config
            owner.config = copy.copy(owner.config)
            owner.config.num_attention_heads //= plan.size
            owner.config.num_key_value_heads //= plan.size
    lm: Any = model.lm
    if hasattr(lm.base, "own_heads"):  # MPT: which slopes are this rank's
        each = lm.base.heads // plan.size
        start = mesh.get_local_rank() * each
        lm.base.own_heads = slice(start, start + each)
    lm.tensor_mesh = mesh
    check_divided(model, plan)


@torch.no_grad()
def undivide(model: nn.Module) -> None:
    """Take the division back, in place: plain whole parameters in every rank. All call it."""
    known = cuts(model)
    for name, cut in known.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        old = owner._parameters[leaf]
        assert old is not None
        full = whole(old.detach(), cut)
        if not isinstance(old, DTensor):  # gathered by somebody who knows nothing of blocks
            full = cut.split.to_plain(full, of=cut.of)
        put(owner, leaf, full, grad=old.requires_grad)
    for module in [m for m in model.modules() if isinstance(m, Divided)]:
        restore(module)
    for owner in model.modules():
        numbers = vars(owner).pop("tensor_heads", None)
        for name, number in (numbers or {}).items():
            setattr(owner, name, number * known_size(known))
        if "tensor_config" in vars(owner):
            owner.config = vars(owner).pop("tensor_config")
    lm: Any = model.lm
    if hasattr(lm.base, "own_heads"):
        lm.base.own_heads = slice(None)
    del lm.tensor_mesh


def known_size(known: Mapping[str, Cut]) -> int:
    """Ranks of the group that a model is divided among."""
    return next(iter(known.values())).of


def check_divided(model: nn.Module, plan: TensorPlan) -> None:
    """Raise AssertionError unless every parameter of a plan is 1 / size of the whole here."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, split in plan.splits.items():
        held = parameters[name]
        assert isinstance(held, DTensor), f"{name} is whole"
        own, full = held.to_local().shape, held.shape
        assert full[split.dim] == sum(split.blocks), f"{name}: {tuple(full)}"
        assert own.numel() * plan.size <= full.numel(), f"{name}: {tuple(own)} of {tuple(full)}"


def local_bytes(parameters: Sequence[nn.Parameter] | Iterator[nn.Parameter]) -> int:
    """Memory of parameters on this rank."""
    held = (p.to_local() if isinstance(p, DTensor) else p for p in parameters)
    return sum(p.numel() * p.element_size() for p in held)
