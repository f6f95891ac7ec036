"""Layers whose matrices are divided among the ranks of a tensor group.

A layer keeps its place, its names and its children; its class is swapped for a subclass that works
on the rank's part. Reference: Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053), section 3.

Legend: I inputs, O outputs, N ranks; X any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from retinue.parallel.tensor_split import SPLITS, Split


class _Enter(torch.autograd.Function):
    """Every rank reads the same input; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _Leave(torch.autograd.Function):
    """The ranks' summands become the sum, which every rank goes on with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def enter(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Before work that each rank does a part of."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    entered: Tensor = _Enter.apply(x, mesh.get_group())
    return entered


def leave(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """After work of which each rank has a summand; x is fresh, and may be overwritten."""
    if torch.is_grad_enabled() and x.requires_grad:
        left: Tensor = _Leave.apply(x, mesh.get_group())
        return left
    x = x.contiguous()
    dist.all_reduce(x, group=mesh.get_group())
    return x


def local(tensor: Tensor) -> Tensor:
    """A rank's part of a divided parameter, other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Divided:
    """What the swapped classes share."""

    tensor_mesh: DeviceMesh
    tensor_splits: Mapping[str, Split]


class ColumnLinear(Divided, nn.Linear):
    """Each rank computes O / N outputs; weight and bias are its rows."""

    def forward(self, x_XI: Tensor) -> Tensor:
        """(..., I) -> (..., O / N)."""
        bias = None if self.bias is None else local(self.bias)
        return nn.functional.linear(enter(x_XI, self.tensor_mesh), local(self.weight), bias)


class RowLinear(Divided, nn.Linear):
    """Each rank multiplies its I / N inputs; the products are summed. The bias is whole.

    On a CPU the summands of half-precision weights are kept in fp32 and rounded once, as one
    process rounds its sum: replies then are the same but for rare last digits.
    """

    def forward(self, x_XI: Tensor) -> Tensor:
        """(..., I / N) -> (..., O)."""
        weight_OI, dtype = local(self.weight), x_XI.dtype
        if weight_OI.device.type == "cpu":
            x_XI, weight_OI = x_XI.float(), weight_OI.float()
        y_XO = leave(nn.functional.linear(x_XI, weight_OI), self.tensor_mesh)
        if self.bias is not None:
            y_XO = y_XO + self.bias.to(y_XO.dtype)
        return y_XO if torch.is_autocast_enabled(y_XO.device.type) else y_XO.to(dtype)


class DividedNorm(Divided, nn.LayerNorm):
    """A norm over all heads together, of which each rank has a part: the sums are shared."""

    def forward(self, x_XI: Tensor) -> Tensor:
        """(..., I / N) -> the same, normalised over I."""
        (width,) = self.normalized_shape
        centred_XI = x_XI.float()
        centred_XI = centred_XI - self.total(centred_XI) / width
        variance_X1 = self.total(centred_XI.square()) / width
        y_XI = centred_XI * (variance_X1 + self.eps).rsqrt() * local(self.weight).float()
        if self.bias is not None:
            y_XI = y_XI + local(self.bias).float()
        return y_XI.to(x_XI.dtype)

    def total(self, x_XI: Tensor) -> Tensor:
        """Sum over the last dimension of all ranks; each rank's outputs depend on all of it."""
        return enter(leave(x_XI.sum(-1, keepdim=True), self.tensor_mesh), self.tensor_mesh)


class _Parts(Divided):
    """A module of transformers that reads its parameters by name: inside, it gets the rank's."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)  # type: ignore[misc]
        if isinstance(found, nn.Parameter) and self.__dict__.get("inside"):
            return self.part(found)
        return found

    def part(self, parameter: nn.Parameter) -> Tensor:
        """What the module's own code is to compute with."""
        return local(parameter)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


class _Experts(_Parts):
    """Every rank holds a part of each expert's inner width, and computes for every token."""

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor, **more: Any) -> Tensor:
        mesh = self.tensor_mesh
        with self.reading():
            out: Tensor = super().forward(  # type: ignore[misc]
                enter(hidden, mesh), chosen, enter(weights, mesh), **more
            )
        return leave(out, mesh)


class _Shared(_Parts):
    """One small weight that all heads use: its gradient is the sum over the ranks' heads."""

    def part(self, parameter: nn.Parameter) -> Tensor:
        return enter(parameter, self.tensor_mesh)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.reading():
            return super().forward(*args, **kwargs)  # type: ignore[misc]


PLAIN: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "column": (nn.Linear, ColumnLinear),
    "row": (nn.Linear, RowLinear),
    "norm": (nn.LayerNorm, DividedNorm),
}
"""Style -> the class that it is for, and what becomes of it."""
OTHERS = {"experts": _Experts, "shared": _Shared}
_made: dict[tuple[str, type], type] = {}


def divide(
    module: nn.Module, *, style: str, mesh: DeviceMesh, splits: Mapping[str, Split]
) -> nn.Module:
    """Swap a module's class for that of its style, in place. Parameters are cut by the caller."""
    kind = type(module)
    if style in PLAIN:
        plain, divided = PLAIN[style]
        assert kind is plain, f"a {kind.__name__} is no {plain.__name__}"
        module.__class__ = divided
    else:
        if (style, kind) not in _made:
            body = {"__module__": __name__}
            _made[style, kind] = type(kind.__name__, (OTHERS[style], kind), body)
        module.__class__ = _made[style, kind]
    module.tensor_mesh = mesh  # type: ignore[assignment]
    setattr(module, SPLITS, dict(splits))
    return module


def restore(module: nn.Module) -> None:
    """Give a divided module the class it had."""
    kinds = [kind for kind in type(module).__mro__ if issubclass(kind, nn.Module)]
    module.__class__ = next(kind for kind in kinds if not issubclass(kind, Divided))
    del module.tensor_mesh
    delattr(module, SPLITS)
