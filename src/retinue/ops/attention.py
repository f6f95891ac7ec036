"""Attention in one call: plain and fast forms behind `attend`, chosen by plan and device.

Legend: B rows, T queries, S keys, H query heads, G key/value heads, D head width.
"""

from __future__ import annotations

from torch import Tensor

from retinue.ops.attention_fast import attend_fast
from retinue.ops.attention_plain import attend_plain
from retinue.ops.backend import Form, form
from retinue.ops.plan import (
    AttentionPlan,
    plan_cached,
    plan_causal,
    plan_documents,
    plan_full,
    plan_tree,
)

__all__ = [
    "AttentionPlan",
    "attend",
    "attend_plain",
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
