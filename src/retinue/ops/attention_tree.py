"""Attention inside trees on a CPU: branches among themselves, then all of them on their trunk.

Legend: T tokens of a row, H query heads, G key/value heads, D head width; L queries, K keys.

Softmax over trunk and branch is put together from the two parts by their log-sum-exp, so neither
needs a mask, and all branches of a tree meet the trunk in one product. The gradient of each part
follows from the log-sum-exp and the output of both (FlashAttention, arXiv 2205.14135, section B.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from retinue.ops.attention_blocks import long_backward
from retinue.ops.plan import PREFIX, PREFIX_STOP, ROW, START, STOP


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Queries and the keys they see: all of them, or (causal) each those up to itself."""

    row: int
    queries: slice
    keys: slice
    causal: bool


def has_prefix(table_P5: Tensor) -> bool:
    """Whether some piece of a plan's table has a prefix."""
    return bool((table_P5[:, PREFIX] < table_P5[:, PREFIX_STOP]).any())


def most_keys(table_P5: Tensor) -> int:
    """Keys of the piece that sees most."""
    keys_P = table_P5[:, STOP] - table_P5[:, START] + table_P5[:, PREFIX_STOP] - table_P5[:, PREFIX]
    return int(keys_P.max()) if len(keys_P) else 0


def _parts(table_P5: Tensor) -> Iterator[_Part]:
    """Every piece by itself, then neighbours with one prefix on it."""
    pieces: list[list[int]] = table_P5.tolist()
    for piece in pieces:
        own = slice(piece[START], piece[STOP])
        yield _Part(row=piece[ROW], queries=own, keys=own, causal=True)
    at = 0
    while at < len(pieces):
        row, start, stop, prefix, prefix_stop = pieces[at]
        at += 1
        while at < len(pieces) and pieces[at] == [
            row,
            stop,
            pieces[at][STOP],
            prefix,
            prefix_stop,
        ]:
            stop = pieces[at][STOP]
            at += 1
        if prefix < prefix_stop:
            keys = slice(prefix, prefix_stop)
            yield _Part(row=row, queries=slice(start, stop), keys=keys, causal=False)


def tree_forward(
    q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, table_P5: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, T, H, D), zero outside the pieces, and log-sum-exp (B, H, T) of both parts."""
    B, H, T, _ = q_BHTD.shape
    out_BTHD = q_BHTD.new_zeros(B, T, H, v_BGTD.shape[-1])
    out_BHTD = out_BTHD.transpose(1, 2)
    kind = torch.float64 if q_BHTD.dtype == torch.float64 else torch.float32
    lse_BHT = torch.zeros(B, H, T, dtype=kind)
    for part in _parts(table_P5):
        q, k, v = _inputs(q_BHTD, k_BGTD, v_BGTD, part)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, part.causal, attn_mask=None, scale=scale
        )
        row = slice(part.row, part.row + 1)
        there, lse_there = out_BHTD[row, :, part.queries], lse_BHT[row, :, part.queries]
        if part.causal:
            there.copy_(out)
            lse_there.copy_(lse)
            continue
        both = torch.logaddexp(lse_there, lse)
        old, new = ((one - both).exp_()[..., None] for one in (lse_there, lse))
        there.copy_(there * old + out * new)
        lse_there.copy_(both)
    return out_BTHD, lse_BHT


def tree_backward(
    grad_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTD: Tensor,
    out_BHTD: Tensor,
    lse_BHT: Tensor,
    table_P5: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the trunk's are summed in fp32 over all branches."""
    kind = torch.promote_types(q_BHTD.dtype, torch.float32)
    G = k_BGTD.shape[1]
    dq, dk, dv = (torch.zeros(x.shape, dtype=kind) for x in (q_BHTD, k_BGTD, v_BGTD))
    for part in _parts(table_P5):
        row = slice(part.row, part.row + 1)
        g, out = grad_BHTD[row, :, part.queries], out_BHTD[row, :, part.queries]
        lse = lse_BHT[row, :, part.queries]
        q, k, v = _inputs(q_BHTD, k_BGTD, v_BGTD, part)
        # not in float16, whose range is too small for gradients between two products
        if q.dtype == torch.bfloat16:
            grads = long_backward(g, q, k, v, out, lse, scale=scale, causal=part.causal)
        else:
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g, q, k, v, out, lse, 0.0, part.causal, attn_mask=None, scale=scale
            )
        dq[row, :, part.queries] += grads[0]
        for buffer, grad in ((dk, grads[1]), (dv, grads[2])):
            grad = grad if grad.shape[1] == G else grad.unflatten(1, (G, -1)).sum(2)
            buffer[row, :, part.keys] += grad
    return dq, dk, dv


def _inputs(q: Tensor, k: Tensor, v: Tensor, part: _Part) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of a part, keys and values spread over the query heads."""
    row, times = slice(part.row, part.row + 1), q.shape[1] // k.shape[1]
    k, v = k[row, :, part.keys], v[row, :, part.keys]
    if times > 1:
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    return q[row, :, part.queries], k, v
