"""Linear layers on 8-bit and 4-bit weights: codes, and products with them.

Legend: N rows, I inputs, O outputs, K inputs of a group, G groups (I / K, the last one padded),
J = K / 2 bytes of a group,
H = 2 halves of a byte.

Few rows are bound by reading the weight, so kernels that read codes pay there; with many rows the
arithmetic dominates, and a weight decoded once for an ordinary product is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from retinue.ops import backend
from retinue.ops.quantized_kernels import Packed, int4_kernel, int8_kernel

GROUP = 32
"""Inputs that share a scale in 4 bits."""
FEW = {"int8": 12, "int4": 32}
"""Rows up to which reading codes beats decoding them (one CPU thread, 1024 x 1024)."""


# ---------------------------------------------------------------- 8 bits


def encode_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (O, I) int8 and scales (O) bf16, one for each output, symmetric about zero."""
    w_OI = weight_OI.float()
    scale_O = (w_OI.abs().amax(1) / 127).clamp(min=1e-30).bfloat16()
    codes_OI = (w_OI / scale_O.float()[:, None]).round_().clamp_(-127, 127)
    return codes_OI.to(torch.int8), scale_O


def decode_int8(codes_OI: Tensor, scale_O: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The weight (O, I) that codes stand for."""
    return codes_OI.to(dtype) * scale_O.to(dtype)[:, None]


def int8_linear(
    x: Tensor, codes_OI: Tensor, scale_O: Tensor, *, form: backend.Form | None = None
) -> Tensor:
    """x W^T, (..., I) -> (..., O) in x's dtype, without gradients in the fast form."""
    x_NI = x.reshape(-1, x.shape[-1])
    fast = len(x_NI) <= FEW["int8"] and backend.form(form) == "fast" and not _wants_grad(x)
    # bf16 rows whose length is no multiple of 16 are read past their end by torch 2.13
    kernel = int8_kernel(x.device.type) if fast and not x.shape[-1] % 16 else None
    if kernel is not None:
        y_NO = kernel(x_NI, codes_OI, scale_O.to(x.dtype))
    else:
        y_NO = linear(x_NI, codes_OI.to(x.dtype)) * scale_O.to(x.dtype)
    return y_NO.view(*x.shape[:-1], len(scale_O))


# ---------------------------------------------------------------- 4 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4:
    """A weight (O, I) as w = (code - 8) * scale + zero.

    codes_GJO: uint8, low half the first J inputs of a group, high half the others; scale_GO and
    zero_GO: bf16; inputs: I before padding.
    """

    codes_GJO: Tensor
    scale_GO: Tensor
    zero_GO: Tensor
    inputs: int


def encode_int4(weight_OI: Tensor, *, group: int = GROUP) -> Int4:
    """Round every weight to the nearest of 16 levels between its group's least and greatest."""
    outputs, inputs = weight_OI.shape
    w_OI = pad(weight_OI.float(), (0, -inputs % group))
    w_GKO = w_OI.view(outputs, -1, group).permute(1, 2, 0)
    low_GO, high_GO = w_GKO.amin(1), w_GKO.amax(1)
    scale_GO = ((high_GO - low_GO) / 15).clamp(min=1e-30).bfloat16()
    zero_GO = (low_GO + 8 * scale_GO.float()).bfloat16()
    codes_GKO = (w_GKO - zero_GO.float()[:, None]) / scale_GO.float()[:, None] + 8
    codes_GKO = codes_GKO.round_().clamp_(0, 15).to(torch.uint8)
    half = group // 2
    codes_GJO = codes_GKO[:, :half] | (codes_GKO[:, half:] << 4)
    return Int4(codes_GJO=codes_GJO.contiguous(), scale_GO=scale_GO, zero_GO=zero_GO, inputs=inputs)


def codes_of(weight: Int4) -> Tensor:
    """(I padded, O) uint8 in 0 … 15."""
    halves = (weight.codes_GJO & 15, weight.codes_GJO >> 4)
    return torch.stack(halves, 1).flatten(0, 2)


def decode_int4(weight: Int4, *, dtype: torch.dtype) -> Tensor:
    """The weight (O, I) that codes stand for, laid out by inputs."""
    groups, half, outputs = weight.codes_GJO.shape
    w_GHJO = weight.scale_GO.new_empty(groups, 2, half, outputs, dtype=dtype)
    # signed bytes before the conversion: those passes are four times shorter
    w_GHJO[:, 0].copy_((weight.codes_GJO & 15).view(torch.int8).sub_(8))
    w_GHJO[:, 1].copy_((weight.codes_GJO >> 4).view(torch.int8).sub_(8))
    scale, zero = (t.to(dtype)[:, None, None] for t in (weight.scale_GO, weight.zero_GO))
    torch.addcmul(zero, w_GHJO, scale, out=w_GHJO)
    return w_GHJO.view(-1, outputs)[: weight.inputs].T


def pack_int4(weight: Int4) -> Packed | None:
    """The weight in the layout of this device's kernel, None where there is none for its shape."""
    kernel = int4_kernel(weight.codes_GJO.device.type)
    if kernel is None or backend.form() == "plain":
        return None
    padded, outputs = 2 * weight.codes_GJO.shape[:2].numel(), weight.codes_GJO.shape[2]
    if outputs % kernel.outputs or padded % kernel.inputs:
        return None
    scale_zero_GO2 = torch.stack([weight.scale_GO, weight.zero_GO], -1).contiguous()
    return kernel.pack(codes_of(weight).T.contiguous(), scale_zero_GO2)


def int4_linear(
    x: Tensor,
    weight: Int4,
    *,
    packed: Callable[[], Packed | None] = lambda: None,
    form: backend.Form | None = None,
) -> Tensor:
    """x W^T, (..., I) -> (..., O) in x's dtype, without gradients in the fast form.

    packed: the weight in the kernel's layout (`pack_int4`), asked for when rows are few.
    """
    x_NI = x.reshape(-1, x.shape[-1])
    few = len(x_NI) <= FEW["int4"] and not _wants_grad(x)
    ready = packed() if few and backend.form(form) == "fast" else None
    if ready is None:
        y_NO = linear(x_NI, decode_int4(weight, dtype=x.dtype))
    else:
        kernel = int4_kernel(x.device.type)
        assert kernel is not None
        padded = 2 * weight.codes_GJO.shape[:2].numel()
        group = padded // len(weight.codes_GJO)
        if padded != weight.inputs:
            x_NI = pad(x_NI, (0, padded - weight.inputs))
        y_NO = kernel.multiply(x_NI, ready, group)
    return y_NO.view(*x.shape[:-1], weight.scale_GO.shape[1])


def few_rows(weight: Int4) -> Callable[[Tensor], Tensor] | None:
    """The kernel's product with this weight, (N, I) -> (N, O), None where there is none.

    The same as `int4_linear` with fewer decisions on the way, for loops of one row.
    """
    packed, kernel = pack_int4(weight), int4_kernel(weight.codes_GJO.device.type)
    if packed is None or kernel is None:
        return None
    padded = 2 * weight.codes_GJO.shape[:2].numel()
    group, missing, multiply = (
        padded // len(weight.codes_GJO),
        padded - weight.inputs,
        kernel.multiply,
    )
    if missing:
        return lambda x_NI: multiply(pad(x_NI, (0, missing)), packed, group)
    return lambda x_NI: multiply(x_NI, packed, group)


def _wants_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
