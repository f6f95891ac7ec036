"""CogVLM's public checkpoints in our terms: config, key rules, packed projections taken apart.

Reference: THUDM/cogvlm-* (config fields and parameter names), arXiv 2311.03079.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.keymap import KeyMap, Op, Rule
from retinue.convert.llava import IMAGE_ID
from retinue.convert.translation import FOREIGN, Translation
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.model.encoders import ENCODERS
from retinue.model.spec import RetinueConfig

ENCODER = "eva"
PACKED = "_expert_query_key_value.weight"
"""End of the names that hold the rows of q, k and v, a third each."""
TEMPLATES = {"vqa": "cogvlm_vqa"}
"""template_version of a config -> our template; all others are the dialogue's."""


def import_cogvlm(config: Mapping[str, Any], *, where: str) -> Translation:
    """Our config, processor settings and key rules. Raises CheckpointError for CogVLM2's."""
    eye = config.get("vision_config")
    if not isinstance(eye, Mapping) or config.get("num_multi_query_heads"):
        raise CheckpointError(
            "no CogVLM of the first generation",
            where=where,
            rule="it has a vision_config, and as many key heads as query heads",
        )
    ENCODERS.get("eva2")  # registers its config
    text = {
        "model_type": "llama",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_attention_heads"],
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "hidden_act": config.get("hidden_act", "silu"),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": config.get("bos_token_id", 1),
        "eos_token_id": config.get("eos_token_id", 2),
        "pad_token_id": config.get("pad_token_id", 0),
    }
    tower = {
        "model_type": "retinue_eva2",
        "image_size": eye["image_size"],
        "patch_size": eye["patch_size"],
        "num_channels": eye.get("in_channels", 3),
        "hidden_size": eye["hidden_size"],
        "num_hidden_layers": eye["num_hidden_layers"],
        "num_attention_heads": eye["num_heads"],
        "intermediate_size": eye["intermediate_size"],
        "hidden_act": eye.get("hidden_act", "gelu"),
        "layer_norm_eps": eye.get("layer_norm_eps", 1e-6),
    }
    take = {"kind": "take", "encoder": ENCODER, "layer": -1, "prefix": False}
    ours = RetinueConfig(
        text_config=text,
        encoders={ENCODER: tower},
        spec={
            "encoders": {ENCODER: {"kind": "eva2"}},
            "connector": {"kind": "glu", "inner": config["intermediate_size"], "of": take},
            "layout": {"kind": "bracket"},
            "fusion": {"kind": "expert"},
            "image_token_id": IMAGE_ID,
        },
        **{FOREIGN: {"format": "cogvlm", "config": dict(config)}},
    )
    template = TEMPLATES.get(str(config.get("template_version")), "cogvlm")
    return Translation(
        config=ours,
        processor={
            "template": {"name": template},
            "views": {"kind": "squash"},
            "streams": {"rgb": {"size": int(eye["image_size"])}},
            "max_tokens": None,
        },
        keys=cogvlm_keys(),
    )


def cogvlm_keys() -> KeyMap:
    """Rules between CogVLM's names, packed ones taken apart, and ours."""
    flat = Op(apply=lambda t: t.flatten(), invert=lambda t: t.view(1, 1, -1))
    layer, ours = "model.layers.{n:int}.", "lm.model.layers.{n}."
    rules = [
        Rule("model.vision.boi", "layout.start", flat),
        Rule("model.vision.eoi", "layout.end", flat),
        Rule("model.vision.linear_proj.{rest}", "connector.{rest}"),
        Rule("model.vision.{rest}", f"encoders.{ENCODER}.net.{{rest}}"),
    ]
    for kind, own in (("vision", "visual_"), ("language", "")):
        rules += [
            Rule(
                f"{layer}self_attn.{kind}{PACKED}[{part}]",
                f"{ours}self_attn.{own}{part}_proj.weight",
            )
            for part in "qkv"
        ]
        rules += [
            Rule(
                f"{layer}self_attn.{kind}_expert_dense.weight",
                f"{ours}self_attn.{own}o_proj.weight",
            ),
            Rule(f"{layer}mlp.{kind}_mlp.{{rest}}", f"{ours}{own}mlp.{{rest}}"),
        ]
    return KeyMap([*rules, Rule("{rest}", "lm.{rest}")])


class Unpacked(Weights):
    """Weights whose packed projections are offered as three: `NAME[q]`, `NAME[k]`, `NAME[v]`."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights.files)
        self._whole = weights

    @cached_property
    def names(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for name, file in self._whole.names.items():
            packed = name.endswith(PACKED)
            found |= dict.fromkeys([f"{name}[{p}]" for p in "qkv"] if packed else [name], file)
        return found

    def read(self, name: str) -> Tensor:
        whole, _, part = name.partition("[")
        tensor = self._whole.read(whole)
        return tensor.chunk(3)["qkv".index(part[0])] if part else tensor

    def shape(self, name: str) -> tuple[int, ...]:
        whole, _, part = name.partition("[")
        rows, *rest = self._whole.shape(whole)
        return (rows // 3 if part else rows, *rest)

    def dtype(self, name: str) -> torch.dtype:
        return self._whole.dtype(name.partition("[")[0])
