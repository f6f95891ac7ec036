"""Torch's private kernels for products with 8-bit and 4-bit weights, each tried before it is used.

Legend: N rows, I inputs, O outputs, G groups of inputs.

Two layouts of 4-bit weights exist: of CPUs (outputs in multiples of 16) and of CUDA (tinygemm:
outputs in multiples of 8, inputs of 128, bf16 only). Both read w = (code - 8) * scale + zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

Int8Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(N, I), codes (O, I), scales (O) in x's dtype -> (N, O)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A 4-bit weight in a kernel's layout; scale_zero_GO2 in bf16."""

    codes: Tensor
    scale_zero_GO2: Tensor
    other: dict[torch.dtype, Tensor]

    def scales(self, dtype: torch.dtype) -> Tensor:
        """Scales and zeros in a dtype; converted once."""
        if dtype == self.scale_zero_GO2.dtype:
            return self.scale_zero_GO2
        if dtype not in self.other:
            self.other[dtype] = self.scale_zero_GO2.to(dtype)
        return self.other[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Kernel:
    """pack: codes (O, I) uint8 in 0 … 15 and scales; multiply: (N, I), packed, group -> (N, O).

    outputs, inputs: what these must be multiples of.
    """

    pack: Callable[[Tensor, Tensor], Packed]
    multiply: Callable[[Tensor, Packed, int], Tensor]
    outputs: int
    inputs: int


def _pack_cpu(codes_OI: Tensor, scale_zero_GO2: Tensor) -> Packed:
    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI.int(), 1)
    return Packed(codes=codes, scale_zero_GO2=scale_zero_GO2, other={})


def _multiply_cpu(x_NI: Tensor, weight: Packed, group: int) -> Tensor:
    found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x_NI, weight.codes, group, weight.scales(x_NI.dtype)
    )
    return found


def _pack_cuda(codes_OI: Tensor, scale_zero_GO2: Tensor) -> Packed:
    pairs = (codes_OI[:, ::2] << 4) | codes_OI[:, 1::2]
    codes = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8)
    return Packed(codes=codes, scale_zero_GO2=scale_zero_GO2, other={})


def _multiply_cuda(x_NI: Tensor, weight: Packed, group: int) -> Tensor:
    found: Tensor = torch.ops.aten._weight_int4pack_mm(
        x_NI.bfloat16(), weight.codes, group, weight.scale_zero_GO2
    )
    return found.to(x_NI.dtype)


_INT4 = {
    "cpu": Int4Kernel(pack=_pack_cpu, multiply=_multiply_cpu, outputs=16, inputs=32),
    "cuda": Int4Kernel(pack=_pack_cuda, multiply=_multiply_cuda, outputs=8, inputs=128),
}


@cache
def int4_kernel(device: str) -> Int4Kernel | None:
    """The kernel for 4-bit weights on a kind of device, if it is there and answers rightly."""
    kernel = _INT4.get(device)
    if kernel is None:
        return None
    codes_OI = (torch.arange(64 * 256, device=device).view(64, 256) * 7 % 16).to(torch.uint8)
    scale_zero = torch.ones(256 // 32, 64, 2, dtype=torch.bfloat16, device=device)
    x_NI = torch.eye(256, dtype=torch.bfloat16, device=device)[:4]
    try:
        y_NO = kernel.multiply(x_NI, kernel.pack(codes_OI, scale_zero), 32)
    except (RuntimeError, AttributeError, TypeError):  # built without it, absent, other arguments
        return None
    right = torch.equal(y_NO.float(), (codes_OI[:, :4].T.float() - 8) + 1)
    return kernel if right else None


@cache
def int8_kernel(device: str) -> Int8Kernel | None:
    """The kernel for 8-bit weights on a kind of device, if it is there and answers rightly."""
    codes_OI = torch.arange(32 * 64, device=device).view(32, 64).remainder(200).sub(100)
    codes_OI = codes_OI.to(torch.int8)
    scale_O = torch.full((32,), 0.5, dtype=torch.bfloat16, device=device)
    x_NI = torch.eye(64, dtype=torch.bfloat16, device=device)[:4]
    kernel: Int8Kernel | None = getattr(torch.ops.aten, "_weight_int8pack_mm", None)
    if kernel is None:
        return None
    try:
        y_NO = kernel(x_NI, codes_OI, scale_O)
    except (RuntimeError, TypeError):  # built without it, other arguments
        return None
    return kernel if torch.equal(y_NO.float(), codes_OI[:, :4].T.float() / 2) else None
