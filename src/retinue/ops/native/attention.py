"""The compiled gradient of attention in bfloat16: all pieces of a batch in one call.

Legend: B rows, T queries and S keys of a row, H query heads, G key/value heads, D head width,
P pieces; n pieces of L queries and K keys.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from retinue.ops.native import library

WIDTH = 32
"""Head widths must be a multiple of it."""

Backward = Callable[..., None]


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)]
    _fields_ += [(name, ctypes.c_int64) for name in ("row", "head", "token", "wide")]


class _Call(ctypes.Structure):
    """As `Call` in the source, member by member."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("pieces", "heads", "groups", "width", "causal")),
        ("scale", ctypes.c_float),
        ("table", ctypes.c_void_p),
        *((name, _View) for name in ("grad", "q", "k", "v", "out", "lse", "dq", "dk", "dv")),
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
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        pieces_P5: Tensor,
        *,
        scale: float,
        causal: bool,
    ) -> None:
        """Write the gradients of all pieces.

        inputs: gradient, q, k, v, output, each (B, H or G, T, D) in bfloat16, and log-sum-exp
        (B, H, T) in fp32; outputs: dq, dk, dv in the shapes of q, k, v, fp32 or bfloat16, any
        strides but of D. pieces: row, first query, queries, first key, keys, in int64. What lies in
        no piece is left as it is.
        """
        q_BHTD, k_BGSD = inputs[1:3]
        kept = [*(_flat(x) for x in inputs[:5]), inputs[5].unsqueeze(-1), *outputs]
        table = pieces_P5.contiguous()
        call = _Call(
            len(table),
            q_BHTD.shape[1],
            k_BGSD.shape[1],
            q_BHTD.shape[-1],
            int(causal),
            scale,
            table.data_ptr(),
            *(_View(x.data_ptr(), *x.stride()[:3], int(x.element_size() == 4)) for x in kept),
        )
        if function(ctypes.byref(call), torch.get_num_threads()):
            raise RuntimeError("torch has no block products for bfloat16 on this processor")

    return backward if _right(backward) else None


def equal_pieces(
    grad_nHLD: Tensor,
    q_nHLD: Tensor,
    k_nGKD: Tensor,
    v_nGKD: Tensor,
    out_nHLD: Tensor,
    lse_nHL: Tensor,
    *,
    scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `block_backward`, where `serves`; also with fewer heads of keys, whose gradients it sums.

    The gradient of queries is in their dtype, those of keys and values are in fp32.
    """
    backward = compiled_backward()
    assert backward is not None
    dq = torch.empty(q_nHLD.shape, dtype=q_nHLD.dtype)
    dk, dv = (torch.empty(x.shape, dtype=torch.float32) for x in (k_nGKD, v_nGKD))
    table = whole_table(len(q_nHLD), queries=q_nHLD.shape[2], keys=k_nGKD.shape[2])
    inputs = (grad_nHLD, q_nHLD, k_nGKD, v_nGKD, out_nHLD, lse_nHL)
    backward(inputs, (dq, dk, dv), table, scale=scale, causal=causal)
    return dq, dk, dv


def whole_table(rows: int, *, queries: int, keys: int) -> Tensor:
    """Pieces (P, 5) that are whole rows."""
    table = torch.tensor([[0, 0, queries, 0, keys]]).repeat(rows, 1)
    table[:, 0] = torch.arange(rows)
    return table


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
    found = [torch.empty_like(x) for x in wanted]
    try:
        backward(
            [*small, scores.logsumexp(-1)],
            found,
            whole_table(1, queries=150, keys=150),
            scale=1.0,
            causal=True,
        )
    except RuntimeError:
        return False
    pairs = zip(found, wanted, strict=True)
    return all(bool((a.float() - b).norm() < 0.02 * b.norm()) for a, b in pairs)
