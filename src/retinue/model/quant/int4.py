"""4-bit weights in groups of 32 inputs.

Legend: I inputs, O outputs, G groups of inputs, J bytes of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from retinue.model.quant.base import QuantLinear, joined_bias, plus
from retinue.ops.quantized import (
    FEW,
    Int4,
    decode_int4,
    encode_int4,
    few_rows,
    int4_linear,
    pack_int4,
)
from retinue.ops.quantized_kernels import Packed


class Int4Linear(QuantLinear):
    """Own 4-bit weights, 5 bits with scales: 16 levels between least and greatest of 32 inputs.

    The first product with few rows lays the codes out for the machine's kernel and keeps that
    layout too: 10 bits a weight from then on.
    """

    kind = "int4"
    codes_GJO: Tensor
    scale_GO: Tensor
    zero_GO: Tensor
    laid_out: Packed | None = None
    tried: bool = False

    def encode(self, weight_OI: Tensor) -> None:
        made = encode_int4(weight_OI)
        self.keep(codes_GJO=made.codes_GJO, scale_GO=made.scale_GO, zero_GO=made.zero_GO)

    def decode(self, dtype: torch.dtype) -> Tensor:
        return decode_int4(self.codes, dtype=dtype)

    def multiply(self, x: Tensor) -> Tensor:
        return int4_linear(x, self.codes, packed=self.packed)

    @classmethod
    def joined(cls, layers: Sequence[Self]) -> Callable[[Tensor], Tensor]:
        return JoinedInt4(layers)

    @property
    def codes(self) -> Int4:
        return Int4(
            codes_GJO=self.codes_GJO,
            scale_GO=self.scale_GO,
            zero_GO=self.zero_GO,
            inputs=self.in_features,
        )

    def packed(self) -> Packed | None:
        """The kernel's layout, made once."""
        if not self.tried:
            self.laid_out, self.tried = pack_int4(self.codes), True
        return self.laid_out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.laid_out, self.tried = None, False
        return super()._apply(fn, recurse)


class JoinedInt4:
    """Layers on one input: few rows take one product on their joined codes, many go layer by layer.

    The kernel's layout is kept here instead of in the layers.
    """

    def __init__(self, layers: Sequence[Int4Linear]) -> None:
        self.layers = layers
        codes = [layer.codes for layer in layers]
        whole = Int4(
            codes_GJO=torch.cat([part.codes_GJO for part in codes], -1),
            scale_GO=torch.cat([part.scale_GO for part in codes], -1),
            zero_GO=torch.cat([part.zero_GO for part in codes], -1),
            inputs=codes[0].inputs,
        )
        self.product = few_rows(whole)
        self.bias_O = joined_bias(layers)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, I) -> (N, sum of O)."""
        if self.product is None or len(x) > FEW["int4"]:
            return torch.cat([layer(x) for layer in self.layers], -1)
        return plus(self.product(x), self.bias_O)
