"""What the loop asks of other processes; one process answers for itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """Sums over the ranks of a launch. This base is a launch of one."""

    rank = 0
    size = 1

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks."""
        return list(values)

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        return value

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all ranks in place."""

    def share(self, module: nn.Module) -> None:
        """Give every rank the weights of the first."""

    def wait(self) -> None:
        """Let every rank come to this point."""


class Replicas(Ranks):
    """Ranks that each hold the whole model: torch.distributed's default group.

    A parameter that no rank has a gradient for keeps none.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def total(self, values: Sequence[float]) -> list[float]:
        sums = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(sums)
        return [float(value) for value in sums]

    def largest(self, value: int) -> int:
        most = torch.tensor(value)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """One sum over a flat buffer; the last numbers say who has a gradient at all."""
        if not parameters:
            return
        parts: list[Tensor] = [
            (torch.zeros_like(p) if p.grad is None else p.grad).float().flatten()
            for p in parameters
        ]
        device = parts[0].device
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        flat = torch.cat([*parts, present])
        dist.all_reduce(flat)
        sums = flat.split([len(part) for part in [*parts, present]])
        for parameter, part, owners in zip(parameters, sums, sums[-1].tolist(), strict=False):
            if owners:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def share(self, module: nn.Module) -> None:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def wait(self) -> None:
        dist.barrier()


def ranks_of_launch() -> Ranks:
    """The ranks that torchrun's variables (RANK, WORLD_SIZE, MASTER_*) describe; else one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return Replicas()
