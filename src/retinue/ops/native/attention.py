"""The compiled gradient of attention in bfloat16, behind the signature of `block_backward`.

Legend: n pieces, H heads, L queries, K keys, D head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from retinue.ops.native import library

WIDTH = 32
"""Head widths must be a multiple of it."""

Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


class _View(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("piece", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("token", ctypes.c_int64),
    ]


class _Call(ctypes.Structure):
    """As `Call` in the source, member by member."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("pieces", "heads", "groups")),
        *((name, ctypes.c_int64) for name in ("queries", "keys", "width", "causal")),
        ("scale", ctypes.c_float),
        *((name, _View) for name in ("grad", "q", "k", "v", "out")),
        *((name, ctypes.c_void_p) for name in ("lse", "dq", "dk", "dv")),
    ]


def serves(q_nHLD: Tensor) -> bool:
    """Whether the kernel can take these heads on this machine."""
    return (
        q_nHLD.dtype == torch.bfloat16
        and q_nHLD.shape[-1] % WIDTH == 0
        and compiled_backward() is not None
    )


@cache
def compiled_backward() -> Backward | None:
    """The kernel, if it can be compiled, runs on this processor and answers rightly."""
    found = library("attention_backward")
    if found is None:
        return None
    function = found.attention_backward
    function.argtypes, function.restype = [ctypes.POINTER(_Call), ctypes.c_int64], ctypes.c_int

    def backward(
        grad_nHLD: Tensor,
        q_nHLD: Tensor,
        k_nHKD: Tensor,
        v_nHKD: Tensor,
        out_nHLD: Tensor,
        lse_nHL: Tensor,
        *,
        scale: float,
        causal: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `block_backward`; also with fewer heads of keys, whose gradients are then summed."""
        n, H, L, D = q_nHLD.shape
        G, K = k_nHKD.shape[1:3]
        inputs = [_flat(x) for x in (grad_nHLD, q_nHLD, k_nHKD, v_nHKD, out_nHLD)]
        lse_nHL = lse_nHL.contiguous()
        dq_nHLD = q_nHLD.new_empty(n, H, L, D)
        dk_nGKD, dv_nGKD = (q_nHLD.new_empty(n, G, K, D, dtype=torch.float32) for _ in range(2))
        views = [_View(x.data_ptr(), *x.stride()[:3]) for x in inputs]
        outputs = [x.data_ptr() for x in (lse_nHL, dq_nHLD, dk_nGKD, dv_nGKD)]
        call = _Call(n, H, G, L, K, D, int(causal), scale, *views, *outputs)
        if function(ctypes.byref(call), torch.get_num_threads()):
            raise RuntimeError("torch has no block products for bfloat16 on this processor")
        return dq_nHLD, dk_nGKD, dv_nGKD

    return backward if _right(backward) else None


def _flat(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _right(backward: Backward) -> bool:
    """Compare with the gradient of softmax by hand, on a length that fills no block."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, g = (
        torch.randn(1, 2, 150, WIDTH, generator=generator).bfloat16().float() for _ in range(4)
    )
    scores = (q @ k.transpose(-1, -2)).masked_fill(torch.ones(150, 150).triu(1) > 0, -torch.inf)
    w = scores.softmax(-1)
    ds = w * (g @ v.transpose(-1, -2) - (g * (w @ v)).sum(-1, keepdim=True))
    wanted = (ds @ k, ds.transpose(-1, -2) @ q, w.transpose(-1, -2) @ g)
    small = [x.bfloat16() for x in (g, q, k, v, w @ v)]
    try:
        found = backward(*small, scores.logsumexp(-1), scale=1.0)
    except RuntimeError:
        return False
    pairs = zip(found, wanted, strict=True)
    return all(bool((a.float() - b).norm() < 0.02 * b.norm()) for a, b in pairs)
