"""A frozen linear layer whose weight is kept in fewer bits.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class QuantLinear(nn.Linear):
    """Stands where an nn.Linear stood; `weight` is decoded whenever it is read.

    A leaf keeps its codes in buffers that no state dict lists, answers `encode`, `decode` and
    `multiply`, and says in `require` what this machine lacks. The bias, if any, stays a parameter.
    Gradients reach the input and the bias; the weight takes none.
    """

    kind: ClassVar[str]
    like: Tensor

    def __init__(self, weight_OI: Tensor, *, bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight_OI.shape
        self.register_parameter("bias", bias)
        # follows .to(dtype) and .to(device), so that `weight` answers in what the model is in
        self.register_buffer("like", weight_OI.new_empty(0), persistent=False)
        self.encode(weight_OI.detach())

    @classmethod
    def require(cls) -> None:
        """Raise EnvError if this machine cannot do it."""

    @abstractmethod
    def encode(self, weight_OI: Tensor) -> None:
        """Take a weight over: fill the buffers."""

    @abstractmethod
    def decode(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) that the codes stand for."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """x W^T, (..., I) -> (..., O), where no gradient is wanted."""

    @classmethod
    def joined(cls, layers: Sequence[Self]) -> Callable[[Tensor], Tensor]:
        """Layers of this kind on one input as one product, for inference."""
        return Beside(layers)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The decoded weight (O, I) in the model's dtype: a copy, made anew at each reading."""
        return self.decode(self.like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if x.requires_grad and torch.is_grad_enabled():
            y: Tensor = _Frozen.apply(x, self.decode)
        else:
            y = self.multiply(x)
        return plus(y, self.bias)

    def keep(self, **buffers: Tensor) -> None:
        """Hold tensors that move with the module and keep their dtypes."""
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def plain(self) -> nn.Linear:
        """An ordinary linear layer with the decoded weight and the same bias."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(self.weight.contiguous(), requires_grad=False)
        made.bias = self.bias
        return made

    def reset_parameters(self) -> None:
        """Nothing: codes come from a weight, not from a seed."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        held = {name: tensor for name, tensor in self._buffers.items() if name != "like"}
        super()._apply(fn, recurse)
        for name, tensor in held.items():
            moved = self._buffers[name]
            if tensor is not None and moved is not None and moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self


@dataclass(frozen=True, slots=True)
class Beside:
    """Several layers on one input, their outputs joined."""

    layers: Sequence[nn.Module]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., sum of O)."""
        return torch.cat([layer(x) for layer in self.layers], -1)


def plus(y: Tensor, bias_O: Tensor | None) -> Tensor:
    """y with a bias, if there is one, in y's dtype."""
    return y if bias_O is None else y + bias_O.to(y.dtype)


def joined_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    """The biases of several layers in a row, zeros where one has none; None where none has."""
    held = [None if layer.bias is None else layer.bias.detach() for layer in layers]
    some = next((bias for bias in held if bias is not None), None)
    if some is None:
        return None
    return torch.cat(
        [
            some.new_zeros(layer.out_features) if bias is None else bias
            for layer, bias in zip(layers, held, strict=True)
        ]
    )


def join(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Layers on one input, some of them quantized, as one product for inference."""
    kind = type(layers[0])
    if issubclass(kind, QuantLinear) and all(type(layer) is kind for layer in layers):
        return kind.joined(layers)  # type: ignore[arg-type]
    return Beside(layers)


class _Frozen(torch.autograd.Function):
    """x W^T that decodes W again for the backward, instead of keeping it (QLoRA, 2305.14314)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decode: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.decode = decode
        return linear(x, decode(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grad,) = gradients
        return grad @ ctx.decode(grad.dtype), None
