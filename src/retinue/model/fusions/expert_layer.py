"""Decoder layers with second weights for visual tokens (CogVLM, arXiv 2311.03079, section 2.1).

Legend: B rows, T tokens, D width, H heads, E head width.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from retinue.core.errors import ConfigError
from retinue.ops.route import Routes

MLP = "visual_mlp"
"""Name of the second feed-forward part beside a layer's `mlp`."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@cache
def layer_classes() -> dict[type, Any]:
    """Decoder layer classes with Llama's arithmetic -> their rotation of queries and keys."""
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.mistral import modeling_mistral as mistral
    from transformers.models.qwen2 import modeling_qwen2 as qwen2

    return {
        llama.LlamaDecoderLayer: llama.apply_rotary_pos_emb,
        mistral.MistralDecoderLayer: mistral.apply_rotary_pos_emb,
        qwen2.Qwen2DecoderLayer: qwen2.apply_rotary_pos_emb,
    }


class _Expert:
    turn: Any

    def forward(
        self: Any, hidden_states: Tensor, *args: Any, routes: Routes | None = None, **kwargs: Any
    ) -> Any:
        """The layer as it was where every token is a word; else each token by its own weights."""
        if routes is None:
            return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        assert not args, "layers are called with keywords"
        y_BTD = self.input_layernorm(hidden_states)
        if hasattr(self.self_attn, f"visual_{PROJECTIONS[0]}"):
            y_BTD = self.attend(y_BTD, routes, **kwargs)
        else:
            y_BTD, _ = self.self_attn(hidden_states=y_BTD, **kwargs)
        x_BTD = hidden_states + y_BTD
        y_BTD = self.post_attention_layernorm(x_BTD)
        second = getattr(self, MLP, None)
        return x_BTD + (
            self.mlp(y_BTD) if second is None else routes.apply(y_BTD, self.mlp, second)
        )

    def attend(
        self: Any,
        x_BTD: Tensor,
        routes: Routes,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """One attention over all tokens; queries, keys, values and output by each one's weights."""
        inner = self.self_attn
        q_BHTE, k_BHTE, v_BHTE = (
            routes.apply(x_BTD, getattr(inner, name), getattr(inner, f"visual_{name}"))
            .unflatten(-1, (-1, inner.head_dim))
            .transpose(1, 2)
            for name in PROJECTIONS[:3]
        )
        q_BHTE, k_BHTE = type(self).turn(q_BHTE, k_BHTE, *position_embeddings)
        if past_key_values is not None:
            k_BHTE, v_BHTE = past_key_values.update(k_BHTE, v_BHTE, inner.layer_idx)
        attention: Any = ALL_ATTENTION_FUNCTIONS[inner.config._attn_implementation]
        out_BTHE, _ = attention(
            inner,
            q_BHTE,
            k_BHTE,
            v_BHTE,
            attention_mask,
            dropout=inner.attention_dropout if self.training else 0.0,
            scaling=inner.scaling,
            sliding_window=getattr(inner, "sliding_window", None),
            **kwargs,
        )
        flat_BTD = out_BTHE.flatten(2)
        return routes.apply(flat_BTD, inner.o_proj, inner.visual_o_proj)


_made: dict[type, type] = {}


def expert_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a layer class that has experts. Raises ConfigError for other arithmetic."""
    if kind not in layer_classes():
        known = ", ".join(sorted(one.__name__ for one in layer_classes()))
        raise ConfigError(
            f"a language model of {kind.__name__}s",
            where="model.fusion",
            rule=f"fusion 'expert' knows the layers {known}",
            fix="choose a Llama-like language model",
        )
    if kind not in _made:
        body = {"__module__": kind.__module__, "turn": staticmethod(layer_classes()[kind])}
        _made[kind] = type(f"Expert{kind.__name__}", (_Expert, kind), body)
    return _made[kind]


def add_experts(layer: Any, *, attention: bool, mlp: bool) -> None:
    """Give a layer its second weights, copies of the first; names of the first stay."""
    layer.__class__ = expert_class(type(layer))
    if mlp:
        layer.add_module(MLP, copy.deepcopy(layer.mlp))
    for name in PROJECTIONS if attention else ():
        twin = copy.deepcopy(getattr(layer.self_attn, name))
        layer.self_attn.add_module(f"visual_{name}", twin)
