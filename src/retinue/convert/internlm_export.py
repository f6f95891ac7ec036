"""Llama language models as MOSS2: config fields, and what its format cannot say."""

from __future__ import annotations

from typing import Any

from retinue.core.errors import CheckpointError

SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""Fields of one name in both formats."""


def moss2_fields(text: Any, *, dtype: str | None) -> dict[str, Any]:
    """config.json of MOSS2 for a Llama config. Raises CheckpointError for what it has no word for.

    dtype: of the written weights.
    """
    for reason in _obstacles(text):
        raise CheckpointError(
            f"a language model {text.model_type!r} with {reason}",
            where="export to moss2",
            rule="MOSS2 is Llama with one width of heads, no bias in its MLP, a head of its own, "
            "and a rope that is plain, linear or dynamic",
            fix="keep it as retinue",
        )
    rope = text.rope_parameters
    kind = rope.get("rope_type", "default")
    return {
        **{name: getattr(text, name) for name in SAME},
        "architectures": ["Moss2ForCausalLM"],
        "attn_implementation": "eager",
        "bias": bool(text.attention_bias),
        "model_type": "Moss2",
        "rope_scaling": None if kind == "default" else {"type": kind, "factor": rope["factor"]},
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": False,
        **({"torch_dtype": dtype} if dtype else {}),
    }


def _obstacles(text: Any) -> list[str]:
    """What speaks against the format; empty where nothing does."""
    if text.model_type != "llama":
        return ["another architecture than Llama's"]
    found = []
    if text.mlp_bias:
        found.append("mlp_bias")
    if text.tie_word_embeddings:
        found.append("tied embeddings")
    if (text.head_dim or 0) * text.num_attention_heads != text.hidden_size:
        found.append(f"head_dim {text.head_dim}")
    if text.rope_parameters.get("rope_type", "default") not in ("default", "linear", "dynamic"):
        found.append(f"rope_type {text.rope_parameters['rope_type']}")
    return found
