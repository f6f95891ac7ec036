"""Our models as ModelZoo's `model` section, and as the pair of HF folders its converter works with.

`exact` repeats what the original's converter writes, with its two defects: fields that the
original's own model refuses, and a `freeze` that freezes the projector too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.convert.llava_export import refuse as refuse_llava
from retinue.convert.modelzoo import ACTS, FINAL, GATED
from retinue.convert.modelzoo_keys import is_global
from retinue.convert.translation import foreign
from retinue.core.errors import CheckpointError
from retinue.model.spec import ModelSpec, RetinueConfig

RELEASES = ("2.3", "2.4", "2.5", "2.6", "2.7", "2.8", "2.9")
"""Formats that the original's converter knows; 2.3 has another form of encoder entries."""


def refuse(what: str, rule: str) -> CheckpointError:
    """The error of a model that ModelZoo's library has no words for."""
    return CheckpointError(what, where="export to mm_simple", rule=rule, fix="keep it as retinue")


def export_modelzoo(config: RetinueConfig, *, release: str, exact: bool) -> dict[str, Any]:
    """The `model` section of a release. Raises CheckpointError for what it cannot say."""
    if release not in RELEASES:
        raise refuse(f"release {release!r}", f"known: {', '.join(RELEASES)}")
    spec = ModelSpec.parse(config.spec, where="model")
    if spec.layout.kind != "plain" or spec.budget is not None:
        raise refuse(f"layout {spec.layout.kind!r}", "every picture is one run of all its tokens")
    parts, above = branches(spec.connector.model_dump())
    if len(parts) == 1 and above is not None and not is_global(config):
        parts, above = [(parts[0][0], above)], None
    kept = foreign(config)
    said = kept.get("config", {}) if kept.get("format") in ("llava", "mm_simple") else {}
    entries: list[dict[str, Any]] = []
    modes = set()
    for node, own in parts:
        name, mode = node["encoder"], node["mode"]
        encoder = vit_section(spec, config, name, layer=node["layer"], exact=exact)
        modes.add(mode)
        projection = None if own is None else ffn_section(own, config, node)
        if release == "2.3":
            entries.append({"image_model": [encoder, *([projection] if projection else [])]})
        else:
            found: dict[str, Any] = {"image_encoder": encoder}
            entries.append(found | ({"projection_layer": projection} if projection else {}))
    if len(modes) > 1:
        raise refuse("encoders with and without class token", "one mode holds for all")
    images: dict[str, Any] = {"image_feature_select_mode": modes.pop(), "image_models": entries}
    if above is not None:
        width = config.encoders[parts[0][0]["encoder"]].hidden_size
        wide = parts[0][1]["units"][-1] if parts[0][1] else width
        images["global_image_projection"] = ffn_section(above, config, {"width": wide})
    model: dict[str, Any] = {
        "freeze": frozen(said, exact=exact),
        "image_model_list": images,
        "loss_scaling": said.get("loss_scaling", "num_tokens"),
        "loss_weight": said.get("loss_weight", 1.0),
        "text_model": text_section(spec, config, exact=exact),
    }
    if release != "2.3":
        model["name"] = "multimodal_simple"
    if exact:
        model |= {"label_smoothing": 0.0, "z_loss_eps": 0.0}
    return model


def frozen(said: Mapping[str, Any], *, exact: bool) -> list[str]:
    """`freeze`: what the model came with, or the tower (with the text for a first stage)."""
    if "freeze" in said:
        return list(said["freeze"] or [])
    tower = "^image_model" if exact else "^image_model.image_model_list"
    return [tower, "^text_model"] if said.get("tune_mm_mlp_adapter") else [tower]


def branches(tree: dict[str, Any]) -> tuple[list[tuple[dict[str, Any], Any]], Any]:
    """([(take, projector or None)], global projector or None) of a connector tree."""
    above = None
    if tree["kind"] in ("mlp", "linear"):
        above, tree = tree, tree["of"]
    nodes = tree["parts"] if tree["kind"] == "sequence" else [tree]
    found = []
    for node in nodes:
        own = None
        if node["kind"] == "mlp":
            own, node = node, node["of"]
        mode = "full"
        if node["kind"] == "drop" and node["first"] == 1 and node["of"]["kind"] == "take":
            mode, node = "patch", node["of"]
        if node["kind"] != "take":
            raise refuse(f"a connector {node['kind']!r}", "encoders, MLPs and their sequence")
        mode = mode if node["prefix"] or mode == "patch" else "patch"
        found.append(({**node, "mode": mode}, own))
    return found, above


def ffn_section(
    node: Mapping[str, Any], config: RetinueConfig, below: Mapping[str, Any]
) -> dict[str, Any]:
    """A FeedForwardNetwork section of an mlp or linear node."""
    width = config.get_text_config().hidden_size
    units = node.get("units")
    if not units:
        out = node.get("out") or width
        units = [node.get("hidden") or out] * (node.get("depth", 1) - 1) + [out]
    names = {ours: theirs for theirs, ours in ACTS.items()}
    acts = node.get("acts") or ["gelu"] * (len(units) - 1) + [None]
    wide = below.get("width") or config.encoders[below["encoder"]].hidden_size
    return {
        "input_unit": wide,
        "layers_activation": [None if act is None else names[act] for act in acts],
        "layers_units": list(units),
        "name": "FeedForwardNetwork",
        "use_bias": bool(node.get("bias", True)),
    }


def vit_section(
    spec: ModelSpec, config: RetinueConfig, name: str, *, layer: int, exact: bool
) -> dict[str, Any]:
    """A ViTModel section of a `clip` or `plain_vit` encoder."""
    backbone: Any = config.encoders[name]
    kind = spec.encoders[name].kind
    if kind not in ("clip", "plain_vit"):
        raise refuse(f"an encoder {kind!r}", "its towers are ViTs: clip, plain_vit")
    names = {ours: theirs for theirs, ours in ACTS.items()}
    if kind == "clip":
        size, patch = [backbone.image_size] * 2, [backbone.patch_size] * 2
    else:
        size, patch = list(backbone.image_size), list(backbone.patch_size)
    own: Any = backbone if kind == "plain_vit" else _Clip
    section: dict[str, Any] = {
        "attention_dropout_rate": float(getattr(backbone, "attention_dropout", 0.0)),
        "attention_type": "scaled_dot_product",
        "dropout_rate": 0.0,
        "filter_size": backbone.intermediate_size,
        "hidden_size": backbone.hidden_size,
        "image_size": size,
        "initializer_range": backbone.initializer_range,
        "layer_norm_epsilon": backbone.layer_norm_eps,
        "name": "ViTModel",
        "nonlinearity": names.get(backbone.hidden_act, backbone.hidden_act),
        "norm_first": True,
        "num_channels": backbone.num_channels,
        "num_heads": backbone.num_attention_heads,
        "num_hidden_layers": backbone.num_hidden_layers,
        "patch_size": patch,
        "position_embedding_type": own.positions,
        "prepend_cls_token": own.class_token,
        "use_conv_patchified_embedding": own.patchify == "conv",
        "use_embed_proj_bias": own.patch_bias,
        "use_encoder_pooler_layer": False,
        "use_ffn_bias": own.mlp_bias,
        "use_ffn_bias_in_attention": own.output_bias,
        "use_post_embed_layer_norm": own.embed_norm,
        "use_projection_bias_in_attention": own.attention_bias,
    }
    if layer != FINAL:
        if layer == 0:
            raise refuse("features of layer 0", "the embeddings alone cannot be taken")
        section["image_layer_idx"] = layer - 1 if layer > 0 else layer
    if not own.final_norm:
        section["use_final_layer_norm"] = False
    if exact:
        section["num_classes"] = getattr(backbone, "projection_dim", 2)
        section["use_bias_in_output"] = False
    return section


class _Clip:
    class_token, patchify, patch_bias = True, "conv", False
    positions, embed_norm, final_norm = "learned", True, True
    attention_bias = output_bias = mlp_bias = True


def text_section(spec: ModelSpec, config: RetinueConfig, *, exact: bool) -> dict[str, Any]:
    """A LlamaModel section."""
    text: Any = config.get_text_config()
    if text.model_type != "llama":
        raise refuse(f"a language model {text.model_type!r}", "its converter knows llama")
    fusion = spec.fusion.model_dump()
    if fusion["kind"] not in ("splice", "expert") or fusion.get("attention"):
        raise refuse(f"fusion {fusion['kind']!r}", "its experts are feed-forward parts only")
    heads, head = text.num_attention_heads, text.head_dim
    rope = dict(text.rope_parameters)
    rotary, theta = head, rope["rope_theta"]
    if rope["rope_type"] == "proportional":
        rotary = round(head * rope["partial_rotary_factor"])
        theta = theta ** (rotary / head)
    elif rope["rope_type"] not in ("default", "linear"):
        raise refuse(f"rope {rope['rope_type']!r}", "positions are plain or scaled linearly")
    grouped = text.num_key_value_heads != heads
    section: dict[str, Any] = {
        "attention_dropout_rate": float(text.attention_dropout),
        "attention_module": "multiquery_attention" if grouped else "aiayn_attention",
        "attention_type": "scaled_dot_product",
        "dropout_rate": 0.0,
        "embedding_dropout_rate": 0.0,
        "embedding_layer_norm": False,
        "filter_size": text.intermediate_size,
        "hidden_size": text.hidden_size,
        "initializer_range": text.initializer_range,
        "layer_norm_epsilon": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "name": "LlamaModel",
        "nonlinearity": {ours: theirs for theirs, ours in GATED.items()}[text.hidden_act],
        "norm_type": "rmsnorm",
        "num_heads": heads,
        "num_hidden_layers": text.num_hidden_layers,
        "pos_scaling_factor": float(rope.get("factor", 1.0)),
        "position_embedding_type": "rotary",
        "rope_theta": theta,
        "rotary_dim": rotary,
        "share_embedding_weights": bool(text.tie_word_embeddings),
        "use_bias_in_output": False,
        "use_ffn_bias": bool(text.mlp_bias),
        "use_ffn_bias_in_attention": bool(text.attention_bias),
        "use_projection_bias_in_attention": bool(text.attention_bias),
        "vocab_size": text.vocab_size,
    }
    if grouped:
        section["extra_attention_params"] = {"num_kv_groups": text.num_key_value_heads}
    if head * heads != text.hidden_size:
        section["attention_inner_dim"] = head * heads
    if fusion["kind"] == "expert":
        if fusion["mlp"]:
            section["extra_ffn_params"] = {"static_dual_expert": True}
        if fusion["positions"] == "constant":
            section["constant_pos_embedding"] = fusion["constant"]
        if fusion["positions"] == "shared" or (fusion["mlp"] and fusion["sees"] != "all"):
            raise refuse("CogVLM's experts", "all visual tokens share the image weights")
    if exact:
        section |= {"norm_first": True, "use_ff_layer1_dropout": False}
    return section


def pair_configs(
    config: RetinueConfig, settings: Mapping[str, Any], *, tower: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """config.json of `text_model` and `image_model`, and the latter's preprocessor_config.json.

    tower: the path that the text config names; settings: as in processor.json.
    """
    spec = ModelSpec.parse(config.spec, where="model")
    parts, above = branches(spec.connector.model_dump())
    (node, own), text = parts[0], config.get_text_config()
    backbone: Any = config.encoders[node["encoder"]]
    plain = above is not None and all(
        not above.get(key) for key in ("units", "acts", "out", "hidden")
    )
    if len(parts) > 1 or own or not plain or spec.encoders[node["encoder"]].kind != "clip":
        raise refuse_llava(
            f"{len(parts)} encoders" if len(parts) > 1 else "this connector",
            "the pair has one CLIP tower and one global mlpNx_gelu projector",
        )
    if spec.fusion.kind != "splice" or node["layer"] == FINAL:
        raise refuse_llava("experts, or features after the final norm", "LLaVA has neither")
    rope = dict(text.rope_parameters)
    if rope["rope_type"] not in ("default", "linear"):
        raise refuse_llava(f"rope {rope['rope_type']!r}", "a plain Llama's, or scaled linearly")
    image = {
        "attention_dropout": float(backbone.attention_dropout),
        "intermediate_size": backbone.intermediate_size,
        "hidden_size": backbone.hidden_size,
        "image_size": backbone.image_size,
        "initializer_range": backbone.initializer_range,
        "layer_norm_eps": backbone.layer_norm_eps,
        "hidden_act": backbone.hidden_act,
        "num_channels": backbone.num_channels,
        "projection_dim": backbone.projection_dim,
        "num_attention_heads": backbone.num_attention_heads,
        "num_hidden_layers": backbone.num_hidden_layers,
        "patch_size": backbone.patch_size,
        "model_type": "clip_vision_model",
    }
    scaled = {"type": "linear", "factor": rope["factor"]} if rope["rope_type"] == "linear" else None
    words: dict[str, Any] = {
        "intermediate_size": text.intermediate_size,
        "hidden_size": text.hidden_size,
        "initializer_range": text.initializer_range,
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "hidden_act": text.hidden_act,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "rope_scaling": scaled,
        "rope_theta": rope["rope_theta"],
        "tie_word_embeddings": bool(text.tie_word_embeddings),
        "vocab_size": text.vocab_size,
        "mm_projector_type": f"mlp{above.get('depth', 1)}x_gelu",
        "mm_vision_select_layer": node["layer"],
        "mm_vision_select_feature": "patch" if node["mode"] == "patch" else "cls_patch",
        "mm_hidden_size": backbone.hidden_size,
        "mm_vision_tower": tower,
        **FIXED,
    }
    if text.num_key_value_heads != text.num_attention_heads:
        words["num_key_value_heads"] = text.num_key_value_heads
    return words, image, clip_preprocessor(settings)


FIXED: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": True,
    "image_aspect_ratio": "pad",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "tune_mm_mlp_adapter": False,
    "freeze_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "freeze_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
}
"""What the original's converter writes into every text config."""


def clip_preprocessor(settings: Mapping[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json in the fields of CLIPFeatureExtractor."""
    stream = next(iter(settings["streams"].values()))
    height, width = stream["size"]
    return {
        "crop_size": {"height": height, "width": width},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(stream["mean"]),
        "image_std": list(stream["std"]),
        "resample": {"lanczos": 1, "bilinear": 2, "bicubic": 3}.get(stream["interpolation"], 3),
        "size": max(height, width),
    }
