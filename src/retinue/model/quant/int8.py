"""8-bit weights, a scale for each output.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from retinue.model.quant.base import QuantLinear, joined_bias, plus
from retinue.ops.quantized import decode_int8, encode_int8, int8_linear


class Int8Linear(QuantLinear):
    """Own 8-bit weights: half of bf16's memory, nearest of 255 levels for each output."""

    kind = "int8"
    codes_OI: Tensor
    scale_O: Tensor

    @classmethod
    def joined(cls, layers: Sequence[Self]) -> Callable[[Tensor], Tensor]:
        if len(layers) == 1:
            return layers[0]
        codes_OI = torch.cat([layer.codes_OI for layer in layers])
        scale_O = torch.cat([layer.scale_O for layer in layers])
        start = 0
        for layer in layers:  # the layers look into the joined codes: nothing is held twice
            stop = start + layer.out_features
            layer.codes_OI, layer.scale_O = codes_OI[start:stop], scale_O[start:stop]
            start = stop
        bias_O = joined_bias(layers)
        return lambda x: plus(int8_linear(x, codes_OI, scale_O), bias_O)

    def encode(self, weight_OI: Tensor) -> None:
        codes_OI, scale_O = encode_int8(weight_OI)
        self.keep(codes_OI=codes_OI, scale_O=scale_O)

    def decode(self, dtype: torch.dtype) -> Tensor:
        return decode_int8(self.codes_OI, self.scale_O, dtype=dtype)

    def multiply(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.codes_OI, self.scale_O)
