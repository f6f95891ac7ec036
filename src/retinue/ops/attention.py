"""Attention in one call: plain and fast forms behind `attend`, chosen by plan and device.

Legend: B rows, T queries, S keys, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.ops.attention_fast import attend_fast
from retinue.ops.backend import Form, form
from retinue.ops.plan import (
    AttentionPlan,
    distances,
    plan_cached,
    plan_causal,
    plan_documents,
    plan_full,
    plan_tree,
)

__all__ = [
    "AttentionPlan",
    "attend",
    "plan_cached",
    "plan_causal",
    "plan_documents",
    "plan_full",
    "plan_tree",
]


def attend(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    *,
    plan: AttentionPlan,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
    backend: Form | None = None,
) -> Tensor:
    """softmax(scale q k^T) v where the plan allows it, (B, T, H, D) in v's dtype.

    H is a multiple of G (grouped heads). scale: None = D ** -0.5. dropout: on the weights, 0 when
    evaluating. window: a query sees its newest `window` keys. softcap: scores become
    softcap * tanh(scores / softcap). Queries that may see nothing (padding) give zeros.
    """
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
    q_BHTD, k_BGSD = q_BHTD.to(v_BGSD.dtype), k_BGSD.to(v_BGSD.dtype)
    reach = plan.longest or k_BGSD.shape[2]
    if window is not None and reach <= window:
        window = None
    unusual = dropout > 0 or window is not None or softcap is not None
    if unusual or form(backend) == "plain":
        return attend_plain(
            q_BHTD,
            k_BGSD,
            v_BGSD,
            plan=plan,
            scale=scale,
            dropout=dropout,
            window=window,
            softcap=softcap,
        )
    return attend_fast(q_BHTD, k_BGSD, v_BGSD, plan=plan, scale=scale)


def attend_plain(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    *,
    plan: AttentionPlan,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition: a dense mask, products in the inputs' dtype, softmax in fp32."""
    B, H, T, D = q_BHTD.shape
    G, S = k_BGSD.shape[1:3]
    q_BGRTD = q_BHTD.reshape(B, G, H // G, T, D)
    scores = (q_BGRTD @ k_BGSD[:, :, None].transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    mask_BTS = plan.dense(T, S, q_BHTD.device)
    if mask_BTS is None and (window is not None or plan.slopes_H is not None):
        mask_BTS = torch.ones(1, T, S, dtype=torch.bool, device=q_BHTD.device)
    if mask_BTS is not None:
        far_BTS = distances(mask_BTS)
        if plan.slopes_H is not None:
            slopes = plan.slopes_H.to(scores).reshape(1, G, H // G, 1, 1)
            scores = scores - slopes * far_BTS[:, None, None]
        if window is not None:
            mask_BTS = mask_BTS & (far_BTS < window)
        hidden = ~mask_BTS[:, None, None]
        # the lowest finite score keeps rows without any key free of NaN
        weights = scores.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
        weights = weights.masked_fill(hidden, 0.0)
    else:
        weights = scores.softmax(-1)
    weights = torch.nn.functional.dropout(weights.to(v_BGSD.dtype), dropout)
    out_BGRTD = weights @ v_BGSD[:, :, None]
    return out_BGRTD.reshape(B, H, T, -1).transpose(1, 2)
