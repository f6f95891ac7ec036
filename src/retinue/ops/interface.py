"""Our attention as a named choice of transformers' models: attn_implementation="retinue".

transformers builds no mask for a name that its mask table lacks, so the plan is all there is:
the caller passes `plan=` to the model's forward and it reaches every layer as a keyword.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from retinue.core.errors import ConfigError
from retinue.ops.attention import attend
from retinue.ops.plan import AttentionPlan, plan_causal, plan_full

NAME = "retinue"
UNSUPPORTED = ("s_aux", "position_bias", "cache")
"""Keywords of layers that change the scores in ways `attend` has no form for."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    plan: AttentionPlan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls: (B, H, T, D) queries, (B, G, S, D) keys and values.

    plan None: causal if the module says so, else full, for rows without padding. Returns
    (B, T, H, D) and no weights. Raises ConfigError for layers with attention sinks, position
    biases or a mask of their own.
    """
    asked = [name for name in UNSUPPORTED if extra.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if asked:
        raise ConfigError(
            f"{type(module).__name__} passes {', '.join(asked)}",
            rule=f"attention {NAME!r} follows a plan and knows no other bias or mask",
            fix="load this model with attn_implementation=sdpa",
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if plan is None or not causal:
        plan = plan_causal() if causal else plan_full()
    out_BTHD = attend(
        query,
        key,
        value,
        plan=plan,
        scale=scaling,
        dropout=dropout,
        window=sliding_window,
        softcap=softcap,
    )
    return out_BTHD, None


def register_attention() -> str:
    """Make "retinue" a value of `attn_implementation`; returns the name. Safe to repeat."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, attention_forward)
    assert NAME not in ALL_MASK_ATTENTION_FUNCTIONS, "transformers would build a mask"
    return NAME
