"""8-bit weights and activations of bitsandbytes.

Legend: I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.model.quant.base import QuantLinear
from retinue.model.quant.bnb import bitsandbytes

OUTLIER = 6.0
"""Inputs with a greater value than this are multiplied in fp16."""


class Bnb8Linear(QuantLinear):
    """LLM.int8 by bitsandbytes: products of 8-bit weights and inputs, outlying inputs in fp16.

    Reference: Dettmers et al. 2022 (arXiv 2208.07339). Training decodes the weight instead.
    """

    kind = "bnb8"
    codes_OI: Tensor
    scale_O: Tensor

    @classmethod
    def require(cls) -> None:
        bitsandbytes()

    def encode(self, weight_OI: Tensor) -> None:
        tools = bitsandbytes().functional
        codes_OI, scale_O, _ = tools.int8_vectorwise_quant(weight_OI.half().contiguous())
        self.keep(codes_OI=codes_OI, scale_O=scale_O)

    def decode(self, dtype: torch.dtype) -> Tensor:
        return (self.codes_OI * (self.scale_O / 127)[:, None]).to(dtype)

    def multiply(self, x: Tensor) -> Tensor:
        package = bitsandbytes()
        state = package.MatmulLtState(CB=self.codes_OI, SCB=self.scale_O)
        state.threshold, state.has_fp16_weights = OUTLIER, False
        found: Tensor = package.matmul(x.half(), self.codes_OI, state=state)
        return found.to(x.dtype)
