"""Linear layers for inference whose weights are laid out for the machine.

Legend: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retinue.ops import backend


def pack_weight(weight_OI: Tensor) -> Tensor:
    """A bf16 weight in oneDNN's own layout. A private operation: see `backend.cpu_prepack`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach())
    return packed


def packed_product(x_NI: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    """x W^T + b with a packed W."""
    y_NO: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, packed, bias_O, "none", [], "")
    return y_NO


class PackedLinear(nn.Module):
    """A frozen bf16 linear layer on a CPU, its weight kept in oneDNN's layout only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = pack_weight(linear.weight)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O) in bf16."""
        return packed_product(x, self.packed, self.bias)


def prepack_bf16(linear: nn.Linear) -> nn.Module:
    """The same layer with a prepacked weight, or `linear` itself where that cannot be had.

    Taken for bf16 weights on a CPU in the fast form; the result cannot be trained or saved.
    """
    weight = linear.weight
    usable = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if not usable or backend.form() == "plain" or not backend.cpu_prepack():
        return linear
    return PackedLinear(linear)
