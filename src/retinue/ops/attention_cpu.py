"""Attention inside rows, documents and trees on a CPU: one operation, the loop inside it.

Legend: B rows, T queries and S keys of a row, P pieces, H query heads, G key/value heads,
R = H / G, D head width; inside a group of pieces: n pieces of L queries and K keys.

Torch's own CPU kernel is the faster forward at every length, but in reduced precision its
gradient is slow: short pieces take matrix products and a softmax, several pieces at once, long
causal ones take `attention_blocks`, and all of them the compiled kernel (`native.attention`) where
it serves. Gradients are written into buffers made once. Pieces are
read from a tensor, so that a compiled layer is not specialised on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from retinue.ops import backend
from retinue.ops.attention_blocks import long_backward
from retinue.ops.attention_tree import has_prefix, most_keys, tree_backward, tree_forward
from retinue.ops.groups import Group, groups_of, put, take, whole_rows
from retinue.ops.native.attention import compiled_backward, serves, whole_table
from retinue.ops.plan import ROW, START, STOP

SHORT_KEYS = 256
"""In reduced precision the gradient of pieces of up to so many keys is by products (measured)."""


@torch.library.custom_op("retinue::attention_in_pieces", mutates_args=(), device_types="cpu")
def piece_attention(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    table_P5: Tensor | None,
    slopes_H: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention inside every piece of `AttentionPlan.table`, or in whole rows without a table.

    causal: T = S in whole rows; always so in pieces. Returns the output (B, T, H, D), zero
    outside the pieces, and the log-sum-exp (B, H, T) for the gradient of long pieces.
    """
    if table_P5 is not None and _is_forest(q_BHTD, v_BGSD, table_P5, slopes_H):
        with torch.autocast("cpu", enabled=False):
            return tree_forward(q_BHTD, k_BGSD, v_BGSD, table_P5, scale=scale)
    B, H, T, _ = q_BHTD.shape
    out_BTHD = q_BHTD.new_zeros(B, T, H, v_BGSD.shape[-1])
    out_BHTD = out_BTHD.transpose(1, 2)
    lse_BHT = torch.zeros(B, H, T, dtype=_lse_dtype(q_BHTD))
    short = 0 if _has_kernel(q_BHTD, v_BGSD) else None
    with torch.autocast("cpu", enabled=False):
        for group in _groups(q_BHTD, k_BGSD, table_P5, short):
            q, k, v = _inputs(q_BHTD, k_BGSD, v_BGSD, group)
            if group.short:
                mask = _mask(q, k, slopes_H, causal)
                put(out_BHTD, group, short_forward(q, k, v, mask, scale=scale))
                continue
            k, v = _spread(k, H), _spread(v, H)
            mask, plain = _flash_mask(q, k, slopes_H, causal)
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, plain, attn_mask=mask, scale=scale
            )
            put(out_BHTD, group, out)
            lse_BHT[group.rows, :, group.start : group.stop] = lse
    return out_BTHD, lse_BHT


@torch.library.custom_op("retinue::attention_in_pieces_grad", mutates_args=(), device_types="cpu")
def piece_attention_backward(
    grad_BTHD: Tensor,
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    table_P5: Tensor | None,
    slopes_H: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; the weights of short pieces are computed again."""
    H, G = q_BHTD.shape[1], k_BGSD.shape[1]
    grad_BHTD, out_BHTD = grad_BTHD.transpose(1, 2), out_BTHD.transpose(1, 2)
    if table_P5 is not None and _is_forest(q_BHTD, v_BGSD, table_P5, slopes_H):
        with torch.autocast("cpu", enabled=False):
            dq, dk, dv = tree_backward(
                grad_BHTD, q_BHTD, k_BGSD, v_BGSD, out_BHTD, lse_BHT, table_P5, scale=scale
            )
        return _laid(dq.to(q_BHTD)), _laid(dk.to(k_BGSD)), _laid(dv.to(v_BGSD))
    if slopes_H is None and not _is_prefixed(table_P5) and serves(q_BHTD):
        return _compiled(
            grad_BHTD, q_BHTD, k_BGSD, v_BGSD, out_BHTD, lse_BHT, table_P5, causal, scale
        )
    # several branches add to the gradient of a prefix: in fp32, like any long sum
    shared = table_P5 is not None and has_prefix(table_P5)
    kind = torch.float32 if shared else q_BHTD.dtype
    dq, dk, dv = (_zeros(x, kind) for x in (q_BHTD, k_BGSD, v_BGSD))
    short = None
    if _has_kernel(q_BHTD, v_BGSD):
        short = SHORT_KEYS if q_BHTD.dtype.itemsize < 4 else 0
    grads: Any
    with torch.autocast("cpu", enabled=False):
        for group in _groups(q_BHTD, k_BGSD, table_P5, short):
            q, k, v = _inputs(q_BHTD, k_BGSD, v_BGSD, group)
            g = take(grad_BHTD, group, blank=True)
            if group.short:
                mask = _mask(q, k, slopes_H, causal)
                grads = short_backward(g, q, k, v, mask, scale=scale)
            else:
                k, v, out = _spread(k, H), _spread(v, H), take(out_BHTD, group)
                lse = lse_BHT[group.rows, :, group.start : group.stop]
                mask, plain = _flash_mask(q, k, slopes_H, causal)
                # not in float16, whose range is too small for gradients between two products
                if plain and q_BHTD.dtype == torch.bfloat16:
                    grads = long_backward(g, q, k, v, out, lse, scale=scale)
                else:
                    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                        g, q, k, v, out, lse, 0.0, plain, attn_mask=mask, scale=scale
                    )
                grads = (grads[0], _summed(grads[1], G), _summed(grads[2], G))
            for buffer, grad in zip((dq, dk, dv), grads, strict=True):
                put(buffer, group, grad)
    return _laid(dq.to(q_BHTD)), _laid(dk.to(k_BGSD)), _laid(dv.to(v_BGSD))


def _laid(x_BHTD: Tensor) -> Tensor:
    """Heads inside tokens, as the layers around hand them in and want their gradients."""
    return x_BHTD.transpose(1, 2).contiguous().transpose(1, 2)


def _zeros(x_BHTD: Tensor, kind: torch.dtype) -> Tensor:
    B, H, T, D = x_BHTD.shape
    return x_BHTD.new_zeros(B, T, H, D, dtype=kind).transpose(1, 2)


def _is_prefixed(table_P5: Tensor | None) -> bool:
    return table_P5 is not None and has_prefix(table_P5)


def _compiled(
    grad_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    out_BHTD: Tensor,
    lse_BHT: Tensor,
    table_P5: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """All pieces by the compiled kernel, straight into the gradients."""
    backward = compiled_backward()
    assert backward is not None
    if table_P5 is None:
        T, S = q_BHTD.shape[2], k_BGSD.shape[2]
        pieces = whole_table(len(q_BHTD), queries=T, keys=S)
    else:
        length_P = table_P5[:, STOP] - table_P5[:, START]
        span = [table_P5[:, START], length_P]
        pieces = torch.stack([table_P5[:, ROW], *span, *span], 1)
    inputs = (grad_BHTD, q_BHTD, k_BGSD, v_BGSD, out_BHTD, lse_BHT)
    grads = [_zeros(x, x.dtype) for x in (q_BHTD, k_BGSD, v_BGSD)]
    backward(inputs, grads, pieces, scale=scale, causal=causal)
    return grads[0], grads[1], grads[2]


@piece_attention.register_fake
def _(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    table_P5: Tensor | None,
    slopes_H: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q_BHTD.shape
    lse_BHT = q_BHTD.new_empty(B, H, T, dtype=_lse_dtype(q_BHTD))
    return q_BHTD.new_empty(B, T, H, v_BGSD.shape[-1]), lse_BHT


@piece_attention_backward.register_fake
def _(
    grad_BTHD: Tensor,
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    table_P5: Tensor | None,
    slopes_H: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (_zeros(x, x.dtype) for x in (q_BHTD, k_BGSD, v_BGSD))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_BTHD: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, table, slopes, out, lse = ctx.saved_tensors
    grads = piece_attention_backward(
        grad_BTHD, q, k, v, out, lse, table, slopes, ctx.causal, ctx.scale
    )
    return (*grads, None, None, None, None)


piece_attention.register_autograd(_backward, setup_context=_save)


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _has_kernel(q: Tensor, v: Tensor) -> bool:
    """Torch's CPU kernel wants one head width; without it every piece is a short one."""
    return backend.cpu_flash() and q.shape[-1] == v.shape[-1]


def _is_forest(q: Tensor, v: Tensor, table_P5: Tensor, slopes_H: Tensor | None) -> bool:
    """Trees of long pieces, computed in two parts; short ones are one product with a mask."""
    kernel = slopes_H is None and _has_kernel(q, v)
    return kernel and has_prefix(table_P5) and most_keys(table_P5) > SHORT_KEYS


def _groups(
    q_BHTD: Tensor, k_BGSD: Tensor, table_P5: Tensor | None, short: int | None
) -> Iterator[Group]:
    B, H, T, _ = q_BHTD.shape
    if table_P5 is None:
        return whole_rows(B, T=T, S=k_BGSD.shape[2], heads=H, short=short)
    return groups_of(table_P5, heads=H, short=short)


def _inputs(q: Tensor, k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    return take(q, group), take(k, group, prefix=True), take(v, group, prefix=True)


def _mask(q_nHLD: Tensor, k_nGKD: Tensor, slopes_H: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to the scores, (H or 1, L, K) in fp32; the last query sees every key."""
    L, K = q_nHLD.shape[2], k_nGKD.shape[2]
    if slopes_H is None and (not causal or L == 1):
        return None
    at_L, at_K = torch.arange(K - L, K), torch.arange(K)
    far_LK = at_L[:, None] - at_K
    mask = torch.zeros(1, L, K)
    if slopes_H is not None:
        mask = -slopes_H.float()[:, None, None] * far_LK
    return mask.masked_fill_(far_LK < 0, -torch.inf) if causal else mask


def _flash_mask(
    q: Tensor, k: Tensor, slopes_H: Tensor | None, causal: bool
) -> tuple[Tensor | None, bool]:
    """The mask for torch's kernel, and whether its own causal order (T = S) does instead."""
    if causal and slopes_H is None and q.shape[2] == k.shape[2]:
        return None, True
    mask = _mask(q, k, slopes_H, causal)
    return (None if mask is None else mask[None]), False


# ---------------------------------------------------------------- short pieces


def short_forward(
    q_nHLD: Tensor, k_nGKD: Tensor, v_nGKD: Tensor, mask_HLK: Tensor | None, *, scale: float
) -> Tensor:
    """(n, H, L, D) by two products."""
    n, H, L, _ = q_nHLD.shape
    w_nGXK = _weights(q_nHLD, k_nGKD, mask_HLK, scale)
    return (w_nGXK @ v_nGKD).view(n, H, L, -1)


def short_backward(
    grad_nHLD: Tensor,
    q_nHLD: Tensor,
    k_nGKD: Tensor,
    v_nGKD: Tensor,
    mask_HLK: Tensor | None,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their shapes."""
    n, H, L, D = q_nHLD.shape
    G = k_nGKD.shape[1]
    w_nGXK = _weights(q_nHLD, k_nGKD, mask_HLK, scale)
    g_nGXD = grad_nHLD.reshape(n, G, H // G * L, -1)
    dv = w_nGXK.transpose(-1, -2) @ g_nGXD
    dw_nGXK = g_nGXD @ v_nGKD.transpose(-1, -2)
    ds_nGXK = torch._softmax_backward_data(dw_nGXK, w_nGXK, -1, w_nGXK.dtype).mul_(scale)
    dq = (ds_nGXK @ k_nGKD).view(n, H, L, D)
    dk = ds_nGXK.transpose(-1, -2) @ q_nHLD.reshape(n, G, H // G * L, D)
    return dq, dk, dv


def _weights(q_nHLD: Tensor, k_nGKD: Tensor, mask_HLK: Tensor | None, scale: float) -> Tensor:
    """Softmax of the scores, (n, G, R*L, K): computed in fp32, kept in the inputs' dtype."""
    n, H, L, D = q_nHLD.shape
    G, K = k_nGKD.shape[1:3]
    q_mXD = q_nHLD.reshape(n * G, H // G * L, D)
    k_mDK = k_nGKD.reshape(n * G, K, D).transpose(1, 2)
    scores = torch.baddbmm(q_mXD.new_empty(()), q_mXD, k_mDK, beta=0, alpha=scale)
    if mask_HLK is not None and len(mask_HLK) == 1:
        scores.view(n, H, L, K).add_(mask_HLK.to(scores.dtype))
    elif mask_HLK is not None:
        # biases need the precision of fp32; a mask of zeros and infinities does not
        scores = scores.view(n, H, L, K) + mask_HLK
    # torch's softmax of reduced precision takes half as long again as this way through fp32
    return scores.float().softmax(-1).to(q_nHLD.dtype).view(n, G, -1, K)


# ---------------------------------------------------------------- grouped heads


def _spread(k_nGKD: Tensor, H: int) -> Tensor:
    G = k_nGKD.shape[1]
    return k_nGKD if G == H else k_nGKD.repeat_interleave(H // G, 1)


def _summed(grad_nHKD: Tensor, G: int) -> Tensor:
    H = grad_nHKD.shape[1]
    return grad_nHKD if G == H else grad_nHKD.unflatten(1, (G, H // G)).sum(2)
