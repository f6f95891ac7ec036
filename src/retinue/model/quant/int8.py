"""8-bit weights, a scale for each output.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.model.quant.base import QuantLinear
from retinue.ops.quantized import decode_int8, encode_int8, int8_linear


class Int8Linear(QuantLinear):
    """Own 8-bit weights: half of bf16's memory, nearest of 255 levels for each output."""

    kind = "int8"
    codes_OI: Tensor
    scale_O: Tensor

    def encode(self, weight_OI: Tensor) -> None:
        codes_OI, scale_O = encode_int8(weight_OI)
        self.keep(codes_OI=codes_OI, scale_O=scale_O)

    def decode(self, dtype: torch.dtype) -> Tensor:
        return decode_int8(self.codes_OI, self.scale_O, dtype=dtype)

    def multiply(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.codes_OI, self.scale_O)
