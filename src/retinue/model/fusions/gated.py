"""The gated block that stands before a decoder layer, and the layer that carries it.

Legend: B rows, T tokens, N tokens that see something, S media tokens, L kept ones of a row,
H heads, E head width, D language-model width, W media width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retinue.model.connectors.linear import Dense
from retinue.model.connectors.perceiver import FeedForward
from retinue.ops.cross import attend_rows, attend_runs
from retinue.types import Memory

CHILD = "gated_cross_attn_layer"
"""Name of the block below its decoder layer, as in OpenFlamingo's checkpoints."""


class CrossAttention(nn.Module):
    """Words ask, media answer; nothing normalises the media here."""

    def __init__(self, width: int, media_width: int, *, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = Dense(width, inner, bias=False)
        self.to_kv = Dense(media_width, inner * 2, bias=False)
        self.to_out = Dense(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, memory: Memory, *, number: int) -> Tensor | None:
        """(B, T, D) to be added to x, None where no token sees anything."""
        plan = memory.plan
        if plan.rows:
            assert memory.held is not None
            k_BHLE, v_BHLE, lengths_B = memory.held[number]
            q_BTHE = self.to_q(self.norm(x_BTD)).unflatten(-1, (self.heads, -1))
            out_BTHE = attend_rows(q_BTHE.to(k_BHLE.dtype), k_BHLE, v_BHLE, lengths_B)
            out: Tensor = self.to_out(out_BTHE.flatten(2))
            return out
        k_SHE, v_SHE = self.media(memory, number=number)
        if plan.seen_N is None:
            return None
        flat_XD = x_BTD.flatten(0, 1)
        whole = len(plan.seen_N) == len(flat_XD)
        x_ND = flat_XD if whole else flat_XD.index_select(0, plan.seen_N)
        q_NHE = self.to_q(self.norm(x_ND)).unflatten(-1, (self.heads, -1))
        out_NHE = attend_runs(q_NHE, k_SHE, v_SHE, plan)
        out_ND = self.to_out(out_NHE.flatten(1))
        if not whole:
            out_ND = torch.zeros_like(flat_XD).index_copy(0, plan.seen_N, out_ND.to(x_BTD.dtype))
        return out_ND.view_as(x_BTD)

    def media(self, memory: Memory, *, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all media tokens, (S, H, E); what rows keep goes into the cache."""
        plan, held = memory.plan, memory.held
        inner = self.to_kv.out_features // 2
        like = self.to_kv.weight
        k = v = like.new_zeros(0, self.heads, inner // self.heads)
        if memory.x_SD is not None:
            k, v = self.to_kv(memory.x_SD).unflatten(-1, (2, self.heads, -1)).unbind(1)
        if plan.order_S is not None:
            if held and number in held:
                k_BHLE, v_BHLE, _ = held[number]
                k = torch.cat([k_BHLE.transpose(1, 2).flatten(0, 1), k])
                v = torch.cat([v_BHLE.transpose(1, 2).flatten(0, 1), v])
            k, v = k[plan.order_S], v[plan.order_S]
        if held is not None and plan.keep_BL is not None:
            assert plan.keep_B is not None
            held[number] = (
                k[plan.keep_BL].transpose(1, 2).contiguous(),
                v[plan.keep_BL].transpose(1, 2).contiguous(),
                plan.keep_B,
            )
        return k, v


class GatedBlock(nn.Module):
    """Gated cross-attention and a gated feed-forward (arXiv 2204.14198, section 2.2).

    Both gates start closed, so that the language model is at first what it was. The feed-forward
    half works on every token, with or without a picture, as in the original.
    """

    def __init__(
        self, width: int, media_width: int, *, number: int, heads: int, head_width: int, mult: int
    ) -> None:
        super().__init__()
        self.number = number
        self.attn = CrossAttention(width, media_width, heads=heads, head_width=head_width)
        self.attn_gate = nn.Parameter(torch.empty(1))
        self.ff = FeedForward(width, mult)
        self.ff_gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Closed gates."""
        nn.init.zeros_(self.attn_gate)
        nn.init.zeros_(self.ff_gate)

    def forward(self, x_BTD: Tensor, memory: Memory | None) -> Tensor:
        """(B, T, D) -> (B, T, D); no memory: the feed-forward half alone."""
        seen = None if memory is None else self.attn(x_BTD, memory, number=self.number)
        if seen is not None:
            x_BTD = x_BTD + self.attn_gate.tanh() * seen
        out: Tensor = x_BTD + self.ff_gate.tanh() * self.ff(x_BTD)
        return out


class _Gated(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, memory: Any = None, **kwargs: Any) -> Any:
        """The block, then the layer as it was; `memory` travels as an argument, not on modules."""
        hidden_states = self.get_submodule(CHILD)(hidden_states, memory)
        return super().forward(hidden_states, *args, **kwargs)


_made: dict[type, type] = {}


def gated(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a decoder layer's class that runs its gated block first."""
    if kind not in _made:
        _made[kind] = type(f"Gated{kind.__name__}", (_Gated, kind), {"__module__": kind.__module__})
    return _made[kind]


def insert(layer: nn.Module, block: GatedBlock) -> None:
    """Give a decoder layer its block, or a new one: the layer's parameters keep their names."""
    if not isinstance(layer, _Gated):
        layer.__class__ = gated(type(layer))
    layer.add_module(CHILD, block)
