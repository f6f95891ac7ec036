"""Tensors that processes hold together: one's own part, and the norm of many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copies(tensor: Tensor, processes: int) -> int:
    """How many of all processes hold the same part of a tensor."""
    if not isinstance(tensor, DTensor):
        return processes
    parts = 1
    for dimension, placement in enumerate(tensor.placements):
        if not placement.is_replicate():
            parts *= tensor.device_mesh.size(dimension)
    return processes // parts


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor], *, device: torch.device) -> Tensor:
    """Norm of all gradients together, each counted once whoever holds it. A scalar on `device`."""
    processes = dist.get_world_size()
    square = torch.zeros((), dtype=torch.float64, device=device)
    for gradient in gradients:
        part = own(gradient)
        norm = torch.linalg.vector_norm(part, dtype=torch.float32).to(device, torch.float64)
        square += norm.square() / copies(gradient, processes)
    dist.all_reduce(square)
    return square.sqrt().float()


@torch.no_grad()
def scale_down(parameters: Sequence[nn.Parameter], *, norm: Tensor, limit: float) -> None:
    """Scale gradients in place so that their norm, now `norm`, is at most `limit`."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            part = own(parameter.grad)
            part.mul_(factor.to(part.device, part.dtype))
