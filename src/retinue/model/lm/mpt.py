"""MPT on our attention: transformers' class drops keyword arguments, so plans cannot reach it.

Legend: B rows, T tokens, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MptConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from retinue.core.errors import ConfigError
from retinue.ops.attention import attend
from retinue.ops.plan import AttentionPlan, plan_causal


def alibi_slopes(heads: int, *, most: int) -> Tensor:
    """(H,) slopes 2 ** (-most * i / n) of n = heads rounded up to a power of two, odd ones first.

    Press et al. 2021, arXiv 2108.12409; the order for other head counts is MPT's.
    """
    n = 2 ** math.ceil(math.log2(heads))
    slopes_H = 2.0 ** (-torch.arange(1, n + 1, dtype=torch.float32) * most / n)
    if n != heads:
        slopes_H = torch.cat([slopes_H[1::2], slopes_H[::2]])[:heads]
    return slopes_H


def norm(width: int, eps: float) -> nn.LayerNorm:
    """LayerNorm without bias."""
    return nn.LayerNorm(width, eps=eps, bias=False)


class MptAttention(nn.Module):
    """One product for q, k and v; with `qk_ln` queries and keys are normalised over all heads."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        own, width = config.attn_config, config.d_model
        self.number, self.heads = number, config.n_heads
        self.clip, self.dropout = own.clip_qkv, float(own.attn_pdrop)
        self.scale = own.softmax_scale or (width / config.n_heads) ** -0.5
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        if own.qk_ln:
            self.q_ln = norm(width, config.layer_norm_epsilon)
            self.k_ln = norm(width, config.layer_norm_epsilon)

    def forward(self, x_BTD: Tensor, *, plan: AttentionPlan, past: Any) -> Tensor:
        qkv = self.Wqkv(x_BTD)
        if self.clip:
            qkv = qkv.clamp(-self.clip, self.clip)
        q, k, v = qkv.chunk(3, dim=-1)
        if hasattr(self, "q_ln"):
            q, k = self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        if past is not None:
            k, v = past.update(k, v, self.number)
        dropout = self.dropout if self.training else 0.0
        out_BTHE = attend(q, k, v, plan=plan, scale=self.scale, dropout=dropout)
        out: Tensor = self.out_proj(out_BTHE.flatten(2))
        return out


class MptFeedForward(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.d_model
        self.up_proj = nn.Linear(width, config.expansion_ratio * width, bias=False)
        self.down_proj = nn.Linear(config.expansion_ratio * width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(nn.functional.gelu(self.up_proj(x_BTD)))
        return out


class MptBlock(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        self.norm_1 = norm(config.d_model, config.layer_norm_epsilon)
        self.attn = MptAttention(config, number)
        self.norm_2 = norm(config.d_model, config.layer_norm_epsilon)
        self.ffn = MptFeedForward(config)
        self.drop = nn.Dropout(float(config.resid_pdrop))

    def forward(self, hidden_states: Tensor, *, plan: AttentionPlan, past: Any = None) -> Tensor:
        hidden_states = hidden_states + self.drop(
            self.attn(self.norm_1(hidden_states), plan=plan, past=past)
        )
        return hidden_states + self.drop(self.ffn(self.norm_2(hidden_states)))


class MptStack(nn.Module):
    """Embeddings, blocks and the last norm, called as transformers' base models are."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        own = config.attn_config
        if not own.alibi or own.prefix_lm or not config.no_bias:
            raise ConfigError(
                f"an MPT with alibi={own.alibi}, prefix_lm={own.prefix_lm}, "
                f"no_bias={config.no_bias}",
                where="model.lm",
                rule="linear position biases, causal, without biases, as the released ones are",
            )
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(MptBlock(config, i) for i in range(config.n_layers))
        self.norm_f = norm(config.d_model, config.layer_norm_epsilon)
        self.heads, self.most = config.n_heads, own.alibi_bias_max
        self.own_heads = slice(None)  # fewer where several processes share the heads

    def forward(
        self,
        *,
        inputs_embeds: Tensor,
        past_key_values: Any = None,
        plan: AttentionPlan | None = None,
        memory: Any = None,
        **unused: Any,
    ) -> BaseModelOutputWithPast:
        slopes_H = alibi_slopes(self.heads, most=self.most)[self.own_heads]
        slopes_H = slopes_H.to(inputs_embeds.device)
        plan = (plan or plan_causal()).with_alibi(slopes_H)
        extra = {} if memory is None else {"memory": memory}
        h_BTD = inputs_embeds
        for block in self.blocks:
            # blocks without cross-attention have no use for the memory
            own = extra if hasattr(block, "gated_cross_attn_layer") else {}
            h_BTD = block(h_BTD, plan=plan, past=past_key_values, **own)
        return BaseModelOutputWithPast(last_hidden_state=self.norm_f(h_BTD))


class Mpt(PreTrainedModel):
    """MPT (MosaicML 2023), with the parameter names of `MptForCausalLM`.

    Also MPT-1B, whose queries and keys are normalised: `attn_config.qk_ln`.
    """

    config_class = MptConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    follows_plans = True
    _no_split_modules = ("MptBlock",)
    _supports_attention_backend = True
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = MptStack(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head
