"""Parameter names of ModelZoo's multimodal library, and what its rotation does to q and k.

ModelZoo turns neighbouring channels of a head together, transformers those half a head apart: the
rows of q and k are sorted on the way in and sorted back on the way out, exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from retinue.convert.keymap import IGNORABLE, KeyMap, Op, Rule
from retinue.model.spec import RetinueConfig

TEXT = "text_model.transformer_decoder"
LN_F = "text_model.ln_f.weight"
NORM = f"{TEXT}.norm.weight"
HEAD, TABLE = "text_model.lm_head.weight", "text_model.embedding_layer.word_embeddings.weight"
WRAPPER = "model."
"""Prefix of every name in a training checkpoint."""

_ATTENTION = {"q": "q", "k": "k", "v": "v", "output": "o"}
_NORMS = {"norm1": "input_layernorm", "norm3": "post_attention_layernorm"}
_FFN = {
    "0.linear_layer": "up_proj",
    "0.linear_layer_for_glu": "gate_proj",
    "1.linear_layer": "down_proj",
}


def class_last() -> Op:
    """The class token's position: first in CLIP's table, last in ModelZoo's."""
    return Op(
        apply=lambda table: torch.cat([table[-1:], table[:-1]]),
        invert=lambda table: torch.cat([table[1:], table[:1]]),
    )


def turned(head: int, rotary: int) -> Op:
    """Rows of a head: pairs side by side <-> pairs half a head apart; the rest fills the gaps."""
    half, pairs = head // 2, rotary // 2
    rest = list(range(rotary, head))
    order = [2 * i for i in range(pairs)] + rest[: half - pairs]
    order += [2 * i + 1 for i in range(pairs)] + rest[half - pairs :]
    forth = torch.tensor(order)
    back = torch.argsort(forth)

    def sort(tensor: Tensor, by: Tensor) -> Tensor:
        heads = tensor.unflatten(0, (-1, head))
        return heads[:, by].flatten(0, 1).contiguous()

    return Op(apply=lambda t: sort(t, forth), invert=lambda t: sort(t, back))


def modelzoo_keys(config: RetinueConfig) -> KeyMap:
    """Rules for bare names, as the converter writes them; `under("model.")` for training's."""
    rules: list[Rule] = []
    for number, name in enumerate(config.encoders):
        kind = config.spec["encoders"][name]["kind"]
        rules += encoder_rules(number, name, clip=kind == "clip")
    rules += projector_rules(config)
    rules += text_rules(config)
    return KeyMap(rules, ignorable=(*IGNORABLE, LN_F, *fixed_tables(config)))


def fixed_tables(config: RetinueConfig) -> Iterable[str]:
    """Names of position tables that are computed."""
    for number, encoder in enumerate(config.encoders.values()):
        if getattr(encoder, "positions", None) == "fixed":
            yield f"image_model.image_model_list.{number}.0.embedding_layer.position_embeddings"


def encoder_rules(number: int, name: str, *, clip: bool) -> list[Rule]:
    """Rules of the number-th encoder."""
    theirs, ours = f"image_model.image_model_list.{number}.0.", f"encoders.{name}.net."
    embed, layer = (
        f"{theirs}embedding_layer.",
        f"{theirs}encoder.transformer_encoder.layers.{{n:int}}.",
    )
    norm = f"{theirs}encoder.transformer_encoder.norm.{{rest}}"
    table = f"{embed}position_embeddings.weight"
    if clip:
        own = f"{ours}encoder.layers.{{n}}."
        parts = {f"self_attn.proj_{a}_dense_layer": f"self_attn.{a}_proj" for a in "qkv"}
        parts |= {
            "self_attn.proj_output_dense_layer": "self_attn.out_proj",
            "ffn.ffn.0.linear_layer": "mlp.fc1",
            "ffn.ffn.1.linear_layer": "mlp.fc2",
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
        }
        rules = [
            Rule(f"{embed}cls_embedding", f"{ours}embeddings.class_embedding"),
            Rule(f"{embed}linear_proj.{{rest}}", f"{ours}embeddings.patch_embedding.{{rest}}"),
            Rule(table, f"{ours}embeddings.position_embedding.weight", class_last()),
            Rule(f"{embed}post_embed_ln.{{rest}}", f"{ours}pre_layrnorm.{{rest}}"),
            Rule(norm, f"{ours}post_layernorm.{{rest}}"),
        ]
    else:
        own = f"{ours}blocks.{{n}}."
        parts = {f"self_attn.proj_{a}_dense_layer": a for a in "qkv"}
        parts |= {
            "self_attn.proj_output_dense_layer": "out",
            "ffn.ffn.0.linear_layer": "fc1",
            "ffn.ffn.1.linear_layer": "fc2",
            "norm1": "norm1",
            "norm2": "norm2",
        }
        rules = [
            Rule(f"{embed}cls_embedding", f"{ours}cls"),
            Rule(f"{embed}linear_proj.{{rest}}", f"{ours}patches.{{rest}}"),
            Rule(table, f"{ours}positions"),
            Rule(f"{embed}post_embed_ln.{{rest}}", f"{ours}embed_norm.{{rest}}"),
            Rule(norm, f"{ours}norm.{{rest}}"),
        ]
    return rules + [Rule(f"{layer}{a}.{{rest}}", f"{own}{b}.{{rest}}") for a, b in parts.items()]


def projector_rules(config: RetinueConfig) -> list[Rule]:
    """Rules of the projectors, found by walking the connector tree."""
    rules: list[Rule] = []
    node, place = config.spec["connector"], "connector"
    many = len(config.encoders) > 1
    if node["kind"] == "mlp" and (not many or node["of"]["kind"] == "sequence"):
        single_own = not many and node["of"]["kind"] != "mlp" and not is_global(config)
        theirs = "image_model.image_model_list.0.1." if single_own else "image_model.projection."
        rules += _layers(theirs, place, node)
        node, place = node["of"], f"{place}.of"
    parts = node["parts"] if node["kind"] == "sequence" else [node]
    for number, part in enumerate(parts):
        where = f"{place}.parts.{number}" if node["kind"] == "sequence" else place
        if part["kind"] == "mlp":
            rules += _layers(f"image_model.image_model_list.{number}.1.", where, part)
    return rules


def is_global(config: RetinueConfig) -> bool:
    """Whether the one projector of a model with one encoder is the global one."""
    kept = getattr(config, "foreign", None) or {}
    images = (kept.get("config") or {}).get("image_model_list") or {}
    return not images or images.get("global_image_projection") is not None


def _layers(theirs: str, ours: str, node: dict[str, Any]) -> list[Rule]:
    count = len(node.get("units") or ()) or int(node["depth"])
    return [
        Rule(f"{theirs}ffn.{k}.linear_layer.{{rest}}", f"{ours}.net.{2 * k}.{{rest}}")
        for k in range(count)
    ]


def text_rules(config: RetinueConfig) -> list[Rule]:
    """Rules of the language model, its second feed-forward weights among them."""
    text = config.get_text_config()
    head = int(text.head_dim)
    part = float((text.rope_parameters or {}).get("partial_rotary_factor", 1.0))
    sort = turned(head, round(head * part))
    theirs, ours = f"{TEXT}.layers.{{n:int}}.", "lm.model.layers.{n}."
    rules = [Rule(TABLE, "lm.model.embed_tokens.weight"), Rule(NORM, "lm.model.norm.weight")]
    rules += [
        Rule(
            f"{theirs}self_attn.proj_{a}_dense_layer.{{rest}}",
            f"{ours}self_attn.{b}_proj.{{rest}}",
            sort if a in "qk" else None,
        )
        for a, b in _ATTENTION.items()
    ]
    rules += [Rule(f"{theirs}{a}.{{rest}}", f"{ours}{b}.{{rest}}") for a, b in _NORMS.items()]
    fusion = config.spec["fusion"]
    dual = fusion["kind"] == "expert" and fusion.get("mlp", True)
    for a, b in _FFN.items():
        if dual:
            rules += [
                Rule(f"{theirs}ffn.ffn.{a}.linear_img.{{rest}}", f"{ours}visual_mlp.{b}.{{rest}}"),
                Rule(f"{theirs}ffn.ffn.{a}.linear_text.{{rest}}", f"{ours}mlp.{b}.{{rest}}"),
            ]
        else:
            rules.append(Rule(f"{theirs}ffn.ffn.{a}.{{rest}}", f"{ours}mlp.{b}.{{rest}}"))
    rules.append(Rule(HEAD, "lm.lm_head.weight"))
    return rules
