"""Models of ModelZoo's multimodal library (`multimodal_simple`, "mm_simple") in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.convert.llava import ENCODER, IMAGE_ID
from retinue.convert.modelzoo_fields import Fields
from retinue.convert.modelzoo_keys import modelzoo_keys
from retinue.convert.translation import FOREIGN, Translation
from retinue.core.errors import CheckpointError
from retinue.model.encoders import ENCODERS
from retinue.model.spec import RetinueConfig

ACTS = {"gelu": "gelu", "relu": "relu", "quick_gelu": "quick_gelu", "silu": "silu", "tanh": "tanh"}
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}
"""Activations of a gated feed-forward part -> the function on its gate."""
DROPOUT = "retinue's layers have no dropout here; set it to 0.0"
FINAL = 1000
"""Our layer number of the last block's output after the final norm."""


def text_fields(data: Any, *, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Llama config and the fusion of a `text_model` section. Raises CheckpointError."""
    f = Fields(data, where=where)
    f.only("name", "LlamaModel", "LlamaModel", "llama")
    f.only("position_embedding_type", "learned", "rotary")
    f.only("norm_type", "layernorm", "rmsnorm")
    rate = f.only("dropout_rate", 0.1, 0.0, why=DROPOUT)
    f.only("attention_dropout_rate", 0.1, 0.0, why=DROPOUT)
    if f.take("embd_pdrop", rate, aliases=("embedding_dropout_rate",)):
        raise CheckpointError("embd_pdrop above 0", where=where, rule=DROPOUT)
    for name, value in PLAIN_TEXT.items():
        f.only(name, value)
    f.only("attention_type", "scaled_dot_product")
    f.skip("attention_softmax_fp32", "fold_rope_consts", "use_ff_layer1_dropout", *UNUSED)
    width, heads = int(f.take("hidden_size", 768)), int(f.take("num_heads", 12))
    inner = int(f.take("attention_inner_dim", width))
    head = inner // heads
    rotary = int(f.take("rotary_dim", int(head * 0.25)))
    extra = Fields(f.take("extra_attention_params", {}), where=f"{where}.extra_attention_params")
    grouped = f.only("attention_module", "aiayn_attention", *MODULES) == "multiquery_attention"
    groups = int(extra.take("num_kv_groups", 1 if grouped else heads))
    extra.done()
    act = f.take("nonlinearity", "gelu")
    if act not in GATED:
        raise CheckpointError(
            f"nonlinearity: {act!r}", where=where, rule=f"supported: {', '.join(GATED)}"
        )
    bias = bool(f.take("use_projection_bias_in_attention", True))
    if bool(f.take("use_ffn_bias_in_attention", True)) != bias:
        raise CheckpointError(
            "use_ffn_bias_in_attention differs from use_projection_bias_in_attention",
            where=where,
            rule="a Llama's four projections agree",
        )
    ffn = Fields(f.take("extra_ffn_params", {}), where=f"{where}.extra_ffn_params")
    dual = bool(ffn.take("static_dual_expert", False))
    ffn.done()
    constant = f.take("constant_pos_embedding")
    fields = {
        "model_type": "llama",
        "vocab_size": int(f.take("vocab_size", 50257)),
        "hidden_size": width,
        "intermediate_size": int(f.take("filter_size", 3072)),
        "num_hidden_layers": int(f.take("num_hidden_layers", 12)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "max_position_embeddings": int(f.take("max_position_embeddings", 1024)),
        "rms_norm_eps": float(f.take("layer_norm_epsilon", 1e-5)),
        "hidden_act": GATED[act],
        "tie_word_embeddings": bool(f.take("share_embedding_weights", True)),
        "attention_bias": bias,
        "mlp_bias": bool(f.take("use_ffn_bias", True)),
        "initializer_range": float(f.take("initializer_range", 0.02)),
        "rope_parameters": rope(f, head=head, rotary=rotary),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    f.done()
    if not dual and constant is None:
        return fields, {"kind": "splice"}
    fusion = {"kind": "expert", "attention": False, "mlp": dual, "sees": "all"}
    if constant is None:
        return fields, {**fusion, "positions": "sequence"}
    return fields, {**fusion, "positions": "constant", "constant": int(constant)}


MODULES = ("aiayn_attention", "multiquery_attention")
PLAIN_TEXT: dict[str, Any] = {
    "embedding_layer_norm": False,
    "position_embedding_offset": 0,
    "use_bias_in_output": False,
    "attention_sliding_window_length": None,
    "sliding_window_every_other_decoder_layer": False,
    "attention_logit_softcapping": None,
    "attention_qk_norm_layer": None,
    "embeddings_scale": 1.0,
    "scale_qk_dot_by_d": None,
    "attention_logits_alpha": 1.0,
    "output_logits_alpha": None,
    "output_logits_scale": None,
    "scale_output_logits_by_d": None,
    "final_logit_softcapping": None,
    "norm_first_sandwich": False,
    "norm_first": True,
    "moe_params": None,
    "moe": None,
    "cross_attention_layers": None,
    "pos_scaling_extra_args": None,
}
"""Fields of a text model that must stay as they default, and that value."""
UNUSED = (
    *("mup_base_hidden_size", "mup_base_filter_size", "compute_eval_metrics", "loss_scaling"),
    *("loss_weight", "label_smoothing", "z_loss_eps", "dtype"),
)


def rope(f: Fields, *, head: int, rotary: int) -> dict[str, Any]:
    """transformers' rope parameters; of a partly rotated head, those that turn only that part."""
    theta, factor = float(f.take("rope_theta", 10000.0)), float(f.take("pos_scaling_factor", 1.0))
    f.only("pos_scaling_type", "linear")
    if rotary > head or rotary % 2:
        raise CheckpointError(
            f"rotary_dim: {rotary}", where=f.where, rule=f"even, and at most a head's {head}"
        )
    if rotary < head:
        return {
            "rope_type": "proportional",
            "rope_theta": theta ** (head / rotary),
            "partial_rotary_factor": rotary / head,
            **({"factor": factor} if factor != 1.0 else {}),
        }
    if factor != 1.0:
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    return {"rope_type": "default", "rope_theta": theta}


def encoder_fields(data: Any, *, where: str) -> tuple[str, dict[str, Any], int]:
    """(our kind, backbone config, layer to take) of an image encoder's section."""
    f = Fields(data, where=where)
    f.only("name", "ViTModel", "ViTModel", "vit")
    for name in ("dropout_rate", "attention_dropout_rate", "embedding_dropout_rate"):
        f.only(name, 0.1 if name == "dropout_rate" else 0.0, 0.0, why=DROPOUT)
    f.only("norm_first", True)
    f.only("use_encoder_pooler_layer", False)
    f.only("use_masked_patches", False)
    f.only("attention_type", "scaled_dot_product")
    f.only("attention_module", "aiayn_attention")
    f.only("layerscale_value", None)
    f.only("stochastic_depth_drop_prob", 0.0)
    f.only("interpolate_position_embedding", None)
    f.skip("attention_softmax_fp32", "extra_attention_params", "pooler_nonlinearity")
    f.skip("use_bias_in_output", "stochastic_depth_mode")
    classes = f.take("num_classes")
    f.skip("stochastic_depth_drop_prob_schedule")
    depth = int(f.take("num_hidden_layers", 12))
    number = f.take("image_layer_idx")
    if number is not None and not -depth <= int(number) < depth:
        raise CheckpointError(
            f"image_layer_idx: {number}", where=where, rule=f"the encoder has {depth} layers"
        )
    layer = FINAL if number is None else int(number) + (1 if int(number) >= 0 else 0)
    size, patch = pair(f.take("image_size", 224)), pair(f.take("patch_size", 16))
    sizes = {
        "num_channels": int(f.take("num_channels", 3)),
        "hidden_size": int(f.take("hidden_size", 768)),
        "intermediate_size": int(f.take("filter_size", 3072)),
        "num_hidden_layers": depth,
        "num_attention_heads": int(f.take("num_heads", 12)),
        "layer_norm_eps": float(f.take("layer_norm_epsilon", 1e-5)),
        "hidden_act": known_act(f.take("nonlinearity", "gelu"), where=where),
        "initializer_range": float(f.take("initializer_range", 0.02)),
    }
    choices = {
        "class_token": bool(f.take("prepend_cls_token", True)),
        "patchify": "conv" if f.take("use_conv_patchified_embedding", False) else "linear",
        "patch_bias": bool(f.take("use_embed_proj_bias", True)),
        "positions": f.only("position_embedding_type", None, "learned", "fixed", None),
        "embed_norm": bool(f.take("use_post_embed_layer_norm", False)),
        "final_norm": bool(f.take("use_final_layer_norm", True)),
        "attention_bias": bool(f.take("use_projection_bias_in_attention", True)),
        "output_bias": bool(f.take("use_ffn_bias_in_attention", True)),
        "mlp_bias": bool(f.take("use_ffn_bias", True)),
    }
    if "position_embedding_type" not in f.data:
        choices["positions"] = "learned"
    f.done()
    if any(side % step for side, step in zip(size, patch, strict=True)):
        raise CheckpointError(f"image_size {size} over patches of {patch}", where=where)
    square = size[0] == size[1] and patch[0] == patch[1]
    if choices == AS_CLIP and square and sizes["layer_norm_eps"] == 1e-5:
        return (
            "clip",
            {
                "model_type": "clip_vision_model",
                **sizes,
                "image_size": size[0],
                "patch_size": patch[0],
                **({} if classes is None else {"projection_dim": int(classes)}),
            },
            layer,
        )
    ENCODERS.get("plain_vit")  # registers its config
    own = {"model_type": "retinue_plain_vit", **sizes, **choices}
    return "plain_vit", {**own, "image_size": size, "patch_size": patch}, layer


AS_CLIP: dict[str, Any] = {
    "class_token": True,
    "patchify": "conv",
    "patch_bias": False,
    "positions": "learned",
    "embed_norm": True,
    "final_norm": True,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}
"""The choices with which an encoder is transformers' CLIP."""


def pair(value: Any) -> list[int]:
    """[height, width] of one number or two."""
    both = list(value) if isinstance(value, list | tuple) else [value, value]
    return [int(side) for side in both]


def known_act(name: Any, *, where: str) -> str:
    """transformers' name of an activation."""
    if name not in ACTS:
        raise CheckpointError(f"activation {name!r}", where=where, rule=f"known: {', '.join(ACTS)}")
    return ACTS[name]


def projector(data: Any, of: dict[str, Any], *, width: int, where: str) -> dict[str, Any]:
    """The mlp node of a FeedForwardNetwork section over a node of width `input_unit`."""
    f = Fields(data, where=where)
    f.only("name", "FeedForwardNetwork", "FeedForwardNetwork", "MLP")
    f.skip("input_unit")
    units = [int(unit) for unit in f.need("layers_units")]
    acts = [
        None if one is None else known_act(one, where=where)
        for one in f.take("layers_activation", [None] * len(units))
    ]
    if any(f.take("layers_dropout_rates", [])):
        raise CheckpointError("layers_dropout_rates above 0", where=where, rule=DROPOUT)
    f.only("static_dual_expert", False)
    f.only("moe_params", None)
    bias = bool(f.take("use_bias", False))
    f.done()
    if acts == ["gelu"] * (len(units) - 1) + [None] and set(units) == {width}:
        return {"kind": "mlp", "depth": len(units), "bias": bias, "of": of}
    return {"kind": "mlp", "units": units, "acts": acts, "bias": bias, "of": of}


def import_modelzoo(model: Mapping[str, Any], *, where: str) -> Translation:
    """Our config, processor settings and key rules of a `model` section of 2.3 or 2.10.

    Raises CheckpointError for a field that has no counterpart, by its name.
    """
    f = Fields(model, where=where)
    f.only("name", "multimodal_simple", "multimodal_simple", "mm_simple")
    f.skip("freeze", "output_list", "loss_scaling", "loss_weight", "label_smoothing", "z_loss_eps")
    f.skip("mixed_precision", "fp16_type", "compute_eval_metrics", "dtype")
    text, fusion = text_fields(f.need("text_model"), where=f"{where}.text_model")
    images = Fields(f.need("image_model_list"), where=f"{where}.image_model_list")
    f.done()
    patches_only = images.take("image_feature_select_mode", "patch") == "patch"
    sections = images.need("image_models")
    above = images.take("global_image_projection")
    images.done()
    encoders, specs, parts = {}, {}, []
    for number, section in enumerate(sections):
        place = f"{where}.image_model_list.image_models.{number}"
        name = ENCODER if len(sections) == 1 else f"{ENCODER}{number}"
        backbone, own = split(section, where=place)
        kind, config, layer = encoder_fields(backbone, where=place)
        encoders[name], specs[name] = config, {"kind": kind}
        prefix = bool(config.get("class_token", True))
        node: dict[str, Any] = {
            "kind": "take",
            "encoder": name,
            "layer": layer,
            "prefix": prefix and not patches_only,
        }
        if patches_only and not prefix:
            node = {"kind": "drop", "first": 1, "of": node}
        if own is not None:
            width = text["hidden_size"] if above is None else 0
            node = projector(own, node, width=width, where=f"{place}.projection_layer")
        parts.append(node)
    tree = parts[0] if len(parts) == 1 else {"kind": "sequence", "parts": parts}
    if above is not None:
        place = f"{where}.image_model_list.global_image_projection"
        tree = projector(above, tree, width=text["hidden_size"], where=place)
    sizes = [pair(one["image_size"]) for one in encoders.values()]
    if any(size != sizes[0] for size in sizes):
        raise CheckpointError(
            f"encoders for pictures of {sizes}", where=where, rule="all see the same pixels"
        )
    config = RetinueConfig(
        text_config=text,
        encoders=encoders,
        spec={
            "encoders": specs,
            "connector": tree,
            "layout": {"kind": "plain"},
            "fusion": fusion,
            "image_token_id": IMAGE_ID,
        },
        **{FOREIGN: {"format": "mm_simple", "config": dict(model)}},
    )
    return Translation(
        config=config,
        processor={
            "template": {"name": "vicuna_v1"},
            "views": {"kind": "pad"},
            "streams": {"rgb": {"size": sizes[0]}},
            "max_tokens": text["max_position_embeddings"],
        },
        keys=modelzoo_keys(config),
    )


def split(section: Any, *, where: str) -> tuple[Any, Any]:
    """(encoder, its projector or None) of an entry, in the form of 2.3 or of 2.10."""
    f = Fields(section, where=where)
    old = f.take("image_model")
    if old is not None:
        f.done()
        pair_of = list(old)
        return pair_of[0], pair_of[1] if len(pair_of) > 1 else None
    found = f.need("image_encoder"), f.take("projection_layer")
    f.done()
    return found
