"""Attention by its definition.

Legend: B rows, T queries, S keys, H query heads, G key/value heads, R = H / G, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.ops.plan import AttentionPlan, distances


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
