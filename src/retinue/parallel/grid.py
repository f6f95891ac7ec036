"""Ranks that are several processes: replicas, or a model divided over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retinue.core.errors import ConfigError
from retinue.parallel.mesh import DATA, TENSOR, build_mesh, join, local_device
from retinue.parallel.ranks import Ranks
from retinue.parallel.shard import Sharded
from retinue.parallel.spec import ParallelSpec
from retinue.parallel.step import stand_in
from retinue.parallel.tensor import parallelize, undivide
from retinue.parallel.tensor_split import cuts, like, whole
from retinue.parallel.tensors import own, scale_down, total_norm
from retinue.types import Batch, Output


class Grid(Ranks):
    """The processes of torch.distributed's default group as a mesh (data, tensor).

    spec: what is divided. Raises ConfigError where the degrees do not fit the launch.
    """

    def __init__(self, spec: ParallelSpec, *, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.mesh = build_mesh(spec, device=device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.data_rank, self.data_size = self.mesh[DATA].get_local_rank(), self.mesh[DATA].size()
        self._group = self.mesh[DATA].get_group()
        self._sharded: Sharded | None = None

    def total(self, values: Sequence[float]) -> list[float]:
        sums = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        return [float(value) for value in sums]

    def largest(self, values: Sequence[int]) -> list[int]:
        most = torch.tensor(list(values), dtype=torch.long)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return [int(value) for value in most]

    def share(self, module: nn.Module) -> None:
        assert self.device is not None
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def wait(self) -> None:
        dist.barrier()

    # ------------------------------------------------------------------ layout

    def divide(self, model: Any) -> None:
        assert self._sharded is None
        if self.spec.tensor > 1:
            parallelize(model, self.mesh[TENSOR])
        if self.spec.shard != "none":
            self._sharded = Sharded(model, mesh=self.mesh[DATA], spec=self.spec)

    def join(self, model: Any) -> None:
        if self._sharded is not None:
            self._sharded.undo()
            self._sharded = None
        if self.spec.tensor > 1:
            undivide(model)

    def release(self) -> None:
        if self._sharded is not None:
            self._sharded.release()

    # ------------------------------------------------------------------ computing

    def parts(
        self, objective: Any, model: Any, batch: Batch, *, pictures: bool
    ) -> Iterator[Output]:
        if self._sharded is None:
            yield from objective.parts(model, batch)
        else:
            yield self.output(objective, model, batch, pictures=pictures)

    def output(self, objective: Any, model: Any, batch: Batch, *, pictures: bool) -> Output:
        if self._sharded is None:
            found: Output = objective(model, batch)
            return found
        idle = pictures and batch.visual is None
        seen = stand_in(model).to(batch.tokens.device) if idle else None
        found = self._sharded.step(objective, batch, stand_in=seen)
        return found

    def check(self, objective: Any) -> None:
        if self._sharded is not None and not objective.even:
            raise ConfigError(
                "this objective takes some micro-batches through the layers more often than others",
                where="parallel.shard",
                rule="processes that share weights must ask for them together",
                fix="set objective.form=packed, or parallel.shard=none",
            )

    def add_gradients(self, model: nn.Module) -> None:
        """One sum over a flat buffer; the last numbers say who has a gradient at all.

        Where the model is sharded its gradients are summed already, and a missing one was filled
        with zeros.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            return
        sharded = self._sharded
        reached = sharded.step.reached if sharded else set()
        loose = [p for _, p in named if sharded is None or not isinstance(p, DTensor)]
        device = own(named[0][1]).device
        parts = [
            (torch.zeros_like(own(p)) if p.grad is None else own(p.grad)).float().flatten()
            for p in loose
        ]
        has = [
            float(name in reached if sharded and isinstance(p, DTensor) else p.grad is not None)
            for name, p in named
        ]
        flat = torch.cat([*(part.to(device) for part in parts), torch.tensor(has, device=device)])
        dist.all_reduce(flat, group=self._group)
        *sums, owners = flat.split([*(len(part) for part in parts), len(has)])
        for parameter, part in zip(loose, sums, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            held = own(parameter.grad)
            held.copy_(part.view_as(held))
        for (_, parameter), number in zip(named, owners.tolist(), strict=True):
            if not number:
                parameter.grad = None
        reached.clear()

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert self.device is not None
        norm = total_norm(gradients, device=self.device)
        if limit is not None:
            scale_down(parameters, norm=norm, limit=limit)
        return norm

    # ------------------------------------------------------------------ whole tensors

    def whole(self, model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
        known = cuts(model)
        first = self.rank == 0

        def gather(name: str, tensor: Tensor) -> Tensor | None:
            if not isinstance(tensor, DTensor):
                return tensor
            full = whole(tensor.detach(), known.get(name))
            return full.cpu() if first else None

        return _each(tensors, gather)

    def like(self, model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
        known, parameters = cuts(model), dict(model.named_parameters())

        def lay(name: str, tensor: Tensor) -> Tensor:
            parameter = parameters[name]
            if tensor.shape != parameter.shape:
                return tensor  # a counter of steps
            return like(tensor, parameter.detach(), known.get(name))

        return _each(tensors, lay)

    @contextmanager
    def plain(self, model: nn.Module) -> Iterator[None]:
        divided = {
            name: parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if isinstance(parameter, DTensor)
        }
        full: dict[int, nn.Parameter | None] = {}
        known = cuts(model)
        for name, parameter in divided.items():
            if id(parameter) not in full:
                tensor = whole(parameter.detach(), known.get(name))
                kept = tensor.cpu() if self.rank == 0 else None
                full[id(parameter)] = (
                    None
                    if kept is None
                    else nn.Parameter(kept, requires_grad=parameter.requires_grad)
                )
        if self.rank:
            yield
            return
        try:
            for name, parameter in divided.items():
                _put(model, name, full[id(parameter)])
            yield
        finally:
            for name, parameter in divided.items():
                _put(model, name, parameter)


def _put(model: nn.Module, name: str, value: nn.Parameter | None) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._parameters[leaf] = value


def _each(
    tensors: Mapping[str, Any], change: Callable[[str, Tensor], Tensor | None]
) -> dict[str, Any]:
    """Change every tensor, also those one mapping below; what is none stays."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            found[name] = change(name, value)
        elif isinstance(value, Mapping):
            found[name] = {
                key: change(name, one) if isinstance(one, Tensor) else one
                for key, one in value.items()
            }
        else:
            found[name] = value
    return found


def ranks_of_launch(spec: ParallelSpec, device: torch.device) -> Ranks:
    """The ranks that torchrun's or SLURM's variables describe; else one.

    Raises ConfigError where `parallel` asks for other numbers than there are processes.
    """
    own_device = local_device(device)
    launch = join(own_device)
    if launch.size == 1:
        spec.degrees(1)
        return Ranks()
    return Grid(spec, device=own_device)
