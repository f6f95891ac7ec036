"""Encoders inside SPHINX's checkpoints: their configs, read off the weights, and their parameters.

Four published layouts: BLIP-2's of transformers 4.3x, open_clip's ViT, timm's ConvNeXt, DINOv2's.
Heads leave no trace in the weights: they follow from the published widths, or are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retinue.convert.groups import Group, fused, modules, renamed
from retinue.convert.weights import Weights

EVA, CLIP, CONVNEXT, DINO = "eva", "clip", "convnext", "dinov2"
"""Our names of the encoders."""

QFORMER = "qformer"
THEIRS = {
    EVA: "qformer.vision_model.",
    CLIP: "clip.visual.",
    CONVNEXT: "openclip_convnext_xxl.",
    DINO: "dinov2_vitg14.",
}
PROBES = {
    EVA: "qformer.vision_model.embeddings.class_embedding",
    CLIP: "clip.visual.class_embedding",
    CONVNEXT: "openclip_convnext_xxl.stem.0.weight",
    DINO: "dinov2_vitg14.cls_token",
}
LEFTOVER = (
    *("clip.positional_embedding", "clip.text_projection", "clip.logit_scale"),
    *("clip.token_embedding.weight", "clip.ln_final.{_}", "clip.visual.proj"),
)
"""What the original keeps of CLIP's other half and never uses."""

Given = Mapping[str, Mapping[str, Any]]


def present(weights: Weights) -> list[str]:
    """The encoders that a checkpoint holds, in our order."""
    return [name for name, probe in PROBES.items() if probe in weights]


def count(weights: Weights, pattern: str) -> int:
    """How many numbers stand in the hole of `pattern`, a regular expression with one group."""
    seen = re.compile(pattern)
    found = {int(match[1]) for name in weights if (match := seen.match(name))}
    return max(found, default=-1) + 1


def encoder_configs(weights: Weights, given: Given) -> dict[str, dict[str, Any]]:
    """transformers' config of every encoder present; given: fields that override, by encoder."""
    made = {EVA: _eva, CLIP: _clip, CONVNEXT: _convnext, DINO: _dinov2}
    return {name: {**made[name](weights), **given.get(name, {})} for name in present(weights)}


def _side(weights: Weights, table: str, *, patch: int) -> int:
    return round((weights.shape(table)[-2] - 1) ** 0.5) * patch


def _eva(w: Weights) -> dict[str, Any]:
    root = "qformer.vision_model."
    width, _, patch, _ = w.shape(f"{root}embeddings.patch_embedding.weight")
    return {
        "model_type": "blip_2_vision_model",
        "hidden_size": width,
        "intermediate_size": w.shape(f"{root}encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": count(w, r"qformer\.vision_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // 88, 1),
        "patch_size": patch,
        "image_size": _side(w, f"{root}embeddings.position_embedding", patch=patch),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }


def _clip(w: Weights) -> dict[str, Any]:
    width, _, patch, _ = w.shape("clip.visual.conv1.weight")
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": w.shape("clip.visual.transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": count(w, r"clip\.visual\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(width // 64, 1),
        "patch_size": patch,
        "image_size": _side(w, "clip.visual.positional_embedding", patch=patch),
        # the released models were tuned with exact GELU over weights trained with QuickGELU
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def _convnext(w: Weights) -> dict[str, Any]:
    root = r"openclip_convnext_xxl\.stages\."
    stages = count(w, rf"{root}(\d+)\.")
    first = "openclip_convnext_xxl.stages.{}.blocks.0.gamma"
    return {
        "model_type": "convnext",
        "hidden_sizes": [w.shape(first.format(stage))[0] for stage in range(stages)],
        "depths": [count(w, rf"{root}{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "num_stages": stages,
        "patch_size": w.shape("openclip_convnext_xxl.stem.0.weight")[-1],
        "layer_norm_eps": 1e-5,
        "block_norm_eps": 1e-5,
        "hidden_act": "gelu",
    }


def _dinov2(w: Weights) -> dict[str, Any]:
    width, _, patch, _ = w.shape("dinov2_vitg14.patch_embed.proj.weight")
    swiglu = "dinov2_vitg14.blocks.0.mlp.w12.weight" in w
    return {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": count(w, r"dinov2_vitg14\.blocks\.(\d+)\."),
        "num_attention_heads": max(width // 64, 1),
        "mlp_ratio": 4,
        "patch_size": patch,
        "image_size": _side(w, "dinov2_vitg14.pos_embed", patch=patch),
        "use_swiglu_ffn": swiglu,
        "layer_norm_eps": 1e-6,
    }


def qformer_spec(w: Weights, given: Given) -> dict[str, Any]:
    """The Q-Former's connector node over its vision model."""
    root = "qformer.qformer.encoder.layer."
    _, queries, width = w.shape("qformer.query_tokens")
    depth = count(w, r"qformer\.qformer\.encoder\.layer\.(\d+)\.")
    crossed = [n for n in range(depth) if f"{root}{n}.crossattention.output.dense.bias" in w]
    return {
        "kind": "qformer",
        "queries": queries,
        "out": width,
        "depth": depth,
        "heads": max(width // 64, 1),
        "hidden": w.shape(f"{root}0.intermediate_query.dense.weight")[0],
        "every": crossed[1] - crossed[0] if len(crossed) > 1 else depth,
        **given.get(QFORMER, {}),
    }


# ---------------------------------------------------------------- parameters


def encoder_groups(name: str, config: Any) -> list[Group]:
    """Groups of one encoder, by our name of it and its config."""
    made = {EVA: _eva_groups, CLIP: _clip_groups, CONVNEXT: _convnext_groups, DINO: _dino_groups}
    return made[name](config, THEIRS[name], f"encoders.{name}.net.")


def _eva_groups(config: Any, theirs: str, ours: str) -> list[Group]:
    found = [
        renamed(f"{theirs}embeddings.{leaf}", f"{ours}embeddings.{leaf}")
        for leaf in ("class_embedding", "position_embedding")
    ]
    same = ["embeddings.patch_embedding", "post_layernorm"]
    parts = ("self_attn.qkv", "self_attn.projection", "layer_norm1", "layer_norm2")
    for number in range(config.num_hidden_layers):
        same += [f"encoder.layers.{number}.{part}" for part in (*parts, "mlp.fc1", "mlp.fc2")]
    return found + modules({theirs + name: ours + name for name in same})


def _clip_groups(config: Any, theirs: str, ours: str) -> list[Group]:
    emb = f"{ours}embeddings."
    found = [
        renamed(f"{theirs}class_embedding", f"{emb}class_embedding"),
        renamed(f"{theirs}positional_embedding", f"{emb}position_embedding.weight"),
        renamed(f"{theirs}conv1.weight", f"{emb}patch_embedding.weight"),
        *modules(
            {f"{theirs}ln_pre": f"{ours}pre_layrnorm", f"{theirs}ln_post": f"{ours}post_layernorm"}
        ),
    ]
    parts = {
        "ln_1": "layer_norm1",
        "attn.out_proj": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for number in range(config.num_hidden_layers):
        a, b = f"{theirs}transformer.resblocks.{number}.", f"{ours}encoder.layers.{number}."
        for leaf in ("weight", "bias"):
            each = [f"{b}self_attn.{part}_proj.{leaf}" for part in "qkv"]
            found.append(fused(f"{a}attn.in_proj_{leaf}", each))
        found += modules({a + x: b + y for x, y in parts.items()})
    return found


def _convnext_groups(config: Any, theirs: str, ours: str) -> list[Group]:
    pairs = {
        "stem.0": "embeddings.patch_embeddings",
        "stem.1": "embeddings.layernorm",
        "head.norm": "layernorm",
    }
    found = []
    parts = {"conv_dw": "dwconv", "norm": "layernorm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
    for stage, depth in enumerate(config.depths):
        a, b = f"stages.{stage}.", f"encoder.stages.{stage}."
        if stage:
            pairs |= {f"{a}downsample.{n}": f"{b}downsampling_layer.{n}" for n in range(2)}
        for number in range(depth):
            block, layer = f"{a}blocks.{number}.", f"{b}layers.{number}."
            pairs |= {block + x: layer + y for x, y in parts.items()}
            scale = f"{ours}{layer}layer_scale_parameter"
            found.append(renamed(f"{theirs}{block}gamma", scale))
    return found + modules({theirs + a: ours + b for a, b in pairs.items()})


def _dino_groups(config: Any, theirs: str, ours: str) -> list[Group]:
    emb = f"{ours}embeddings."
    found = [
        renamed(f"{theirs}cls_token", f"{emb}cls_token"),
        renamed(f"{theirs}pos_embed", f"{emb}position_embeddings"),
        renamed(f"{theirs}mask_token", f"{emb}mask_token"),
    ]
    pairs = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    for number in range(config.num_hidden_layers):
        a, b = f"blocks.{number}.", f"encoder.layer.{number}."
        pairs |= {
            f"{a}norm1": f"{b}norm1",
            f"{a}norm2": f"{b}norm2",
            f"{a}attn.proj": f"{b}attention.o_proj",
        }
        for n in (1, 2):
            found.append(renamed(f"{theirs}{a}ls{n}.gamma", f"{ours}{b}layer_scale{n}.lambda1"))
        for leaf in ("weight", "bias"):
            each = [f"{ours}{b}attention.{part}_proj.{leaf}" for part in "qkv"]
            found.append(fused(f"{theirs}{a}attn.qkv.{leaf}", each))
            if config.use_swiglu_ffn:
                both = [f"{ours}{b}mlp.{part}_proj.{leaf}" for part in ("gate", "up")]
                found.append(fused(f"{theirs}{a}mlp.w12.{leaf}", both))
        if config.use_swiglu_ffn:
            pairs[f"{a}mlp.w3"] = f"{b}mlp.down_proj"
        else:
            pairs |= {f"{a}mlp.fc{n}": f"{b}mlp.fc{n}" for n in (1, 2)}
    return found + modules({theirs + a: ours + b for a, b in pairs.items()})


def qformer_groups(spec: Mapping[str, Any], ours: str) -> list[Group]:
    """Groups of the Q-Former; spec: its connector node, ours: that node's place."""
    names = ["layernorm"]
    for number in range(spec["depth"]):
        layer = f"encoder.layer.{number}."
        kinds = ["attention"] + ["crossattention"] * (number % spec["every"] == 0)
        for kind in kinds:
            names += [f"{layer}{kind}.attention.{part}" for part in ("query", "key", "value")]
            names += [f"{layer}{kind}.output.{part}" for part in ("dense", "LayerNorm")]
        names += [f"{layer}intermediate_query.dense"]
        names += [f"{layer}output_query.{part}" for part in ("dense", "LayerNorm")]
    return [
        renamed("qformer.query_tokens", f"{ours}query"),
        *modules({f"qformer.qformer.{name}": f"{ours}net.{name}" for name in names}),
    ]
