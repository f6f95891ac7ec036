"""Which fast form of attention serves a plan on a device.

Legend: B rows, T queries, S keys, H query heads, G key/value heads, D head width, N tokens that
are not padding.

pieces   CPU: `attention_cpu`; CUDA: torch's ragged kernel, or a dense mask where it cannot serve
whole rows   CPU: `attention_cpu` (its gradient is what pays); else scaled_dot_product_attention
anything else   scaled_dot_product_attention with a mask
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from retinue.ops import backend
from retinue.ops.attention_cpu import piece_attention
from retinue.ops.attention_plain import attend_plain
from retinue.ops.plan import AttentionPlan, distances

KEPT_KEYS = 96
"""Whole rows of up to so many keys keep their weights for the gradient (measured, CPU)."""


def attend_fast(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *, plan: AttentionPlan, scale: float
) -> Tensor:
    """(B, T, H, D): `attend_plain` without its T x S scores where the plan allows it."""
    T, S = q_BHTD.shape[2], k_BGSD.shape[2]
    whole = plan.kind in ("full", "causal") and plan.mask_BTS is None
    square = plan.kind == "full" or T == S
    if whole and square and _pays_to_keep_weights(q_BHTD, S):
        return attend_plain(q_BHTD, k_BGSD, v_BGSD, plan=plan, scale=scale)
    if q_BHTD.device.type == "cpu" and (plan.kind == "pieces" or (whole and square)):
        slopes_H = plan.slopes_H
        causal = plan.kind != "full"
        return piece_attention(q_BHTD, k_BGSD, v_BGSD, plan.table, slopes_H, causal, scale)[0]
    if plan.slopes_H is None:
        if whole and (plan.kind == "full" or T in (1, S)):
            out_BHTD = scaled_dot_product_attention(
                q_BHTD,
                k_BGSD,
                v_BGSD,
                is_causal=plan.kind == "causal" and T > 1,
                scale=scale,
                enable_gqa=q_BHTD.shape[1] != k_BGSD.shape[1],
            )
            return out_BHTD.transpose(1, 2)
        if plan.kind == "pieces" and _fits_varlen(q_BHTD, plan):
            return _attend_varlen(q_BHTD, k_BGSD, v_BGSD, plan, scale)
    return _attend_masked(q_BHTD, k_BGSD, v_BGSD, plan, scale)


def _pays_to_keep_weights(q_BHTD: Tensor, S: int) -> bool:
    """Whether a gradient is coming and rows are so short that computing twice costs more."""
    return (
        S <= KEPT_KEYS
        and q_BHTD.device.type == "cpu"
        and q_BHTD.dtype != torch.float32
        and q_BHTD.requires_grad
        and torch.is_grad_enabled()
    )


def _attend_masked(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    H, T = q_BHTD.shape[1:3]
    G, S = k_BGSD.shape[1:3]
    mask_BTS = plan.dense(T, S, q_BHTD.device)
    if mask_BTS is None:
        mask_BTS = torch.ones(1, T, S, dtype=torch.bool, device=q_BHTD.device)
    mask, seen_BT1 = mask_BTS, None
    if plan.blank:
        # kernels disagree on queries without any key: let those see all, then blank them
        seen_BT1 = mask_BTS.any(-1, keepdim=True)
        mask = mask_BTS | ~seen_BT1
    mask = mask[:, None]
    if plan.slopes_H is not None:
        bias = -plan.slopes_H.float()[:, None, None] * distances(mask_BTS)[:, None]
        mask = bias.masked_fill(~mask, -torch.inf).to(q_BHTD.dtype)
    out_BTHD = scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, scale=scale, enable_gqa=H != G
    ).transpose(1, 2)
    return out_BTHD if seen_BT1 is None else out_BTHD.masked_fill(~seen_BT1[..., None], 0.0)


def _fits_varlen(q_BHTD: Tensor, plan: AttentionPlan) -> bool:
    return (
        q_BHTD.device.type == "cuda"
        and not plan.has_prefix
        and q_BHTD.dtype in (torch.bfloat16, torch.float16)
        and backend.varlen() is not None
        and bool(backend.varlen_keywords() & {"window_size", "is_causal"})
        and "scale" in backend.varlen_keywords()
        and q_BHTD.shape[-1] % 8 == 0
        and q_BHTD.shape[-1] <= 256
    )


def _attend_varlen(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    """Documents laid end to end through `torch.nn.attention.varlen`."""
    B, H, T, _ = q_BHTD.shape
    keywords = backend.varlen_keywords()
    kernel = backend.varlen()
    assert kernel is not None
    extra: dict[str, Any] = {"scale": scale}
    extra |= {"window_size": (-1, 0)} if "window_size" in keywords else {"is_causal": True}
    if k_BGSD.shape[1] != H:
        if "enable_gqa" in keywords:
            extra["enable_gqa"] = True
        else:
            k_BGSD, v_BGSD = (x.repeat_interleave(H // x.shape[1], 1) for x in (k_BGSD, v_BGSD))
    ragged = []
    for x in (q_BHTD, k_BGSD, v_BGSD):
        x_NHD = x.transpose(1, 2).flatten(0, 1)
        ragged.append(x_NHD if plan.real_N is None else x_NHD.index_select(0, plan.real_N))
    cu = plan.cu_seqlens
    out_NHD: Tensor = kernel(*ragged, cu, cu, plan.longest, plan.longest, **extra)
    if plan.real_N is not None:
        blank = out_NHD.new_zeros(B * T, *out_NHD.shape[1:])
        out_NHD = blank.index_copy(0, plan.real_N, out_NHD)
    return out_NHD.view(B, T, *out_NHD.shape[1:])
