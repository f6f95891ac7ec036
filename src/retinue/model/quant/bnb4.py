"""4-bit normal floats of bitsandbytes.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retinue.model.quant.base import QuantLinear
from retinue.model.quant.bnb import bitsandbytes


class Bnb4Linear(QuantLinear):
    """NF4 with twice quantized scales, by bitsandbytes: the format of QLoRA.

    Reference: Dettmers et al. 2023 (arXiv 2305.14314); blocks of 64 weights.
    """

    kind = "bnb4"
    packed: Tensor
    levels: Tensor
    scales: Tensor
    offset: Tensor
    scales_levels: Tensor
    scales_scales: Tensor

    @classmethod
    def require(cls) -> None:
        bitsandbytes()

    def encode(self, weight_OI: Tensor) -> None:
        tools = bitsandbytes().functional
        packed, state = tools.quantize_4bit(
            weight_OI.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        self.keep(
            packed=packed,
            levels=state.code,
            scales=state.absmax,
            offset=state.offset,
            scales_levels=state.state2.code,
            scales_scales=state.state2.absmax,
        )

    def decode(self, dtype: torch.dtype) -> Tensor:
        tools = bitsandbytes().functional
        found: Tensor = tools.dequantize_4bit(self.packed, self.state(dtype))
        return found

    def multiply(self, x: Tensor) -> Tensor:
        found: Tensor = bitsandbytes().matmul_4bit(x, self.packed.t(), self.state(x.dtype))
        return found

    def state(self, dtype: torch.dtype) -> Any:
        """bitsandbytes' description of the buffers, for a weight of `dtype`."""
        tools = bitsandbytes().functional
        scales = tools.QuantState(
            absmax=self.scales_scales, blocksize=256, code=self.scales_levels, dtype=torch.float32
        )
        return tools.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.levels,
            blocksize=64,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offset,
            state2=scales,
        )
