"""transformers' LlavaForConditionalGeneration and LlavaNextForConditionalGeneration in our terms.

Key layouts of transformers 4.x (`language_model.model.…`), of 5.x in memory
(`model.language_model.…`) and of what 5.x saves are all read; the first is written, which every
version loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.llava import ENCODER, TEMPLATES
from retinue.convert.pictures import hf_views, stream
from retinue.convert.towers import encoder_kind, norm_fields, tower_rules
from retinue.convert.translation import FOREIGN, Translation
from retinue.core.errors import CheckpointError
from retinue.model.spec import RetinueConfig, as_config

LINEAR = {"linear_1": "net.0", "linear_2": "net.2"}
"""Two linear layers are all the projectors that the format has."""


def import_hf(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    *,
    processor: Mapping[str, Any],
    where: str,
) -> Translation:
    """Our config, processor settings and key rules of a `llava` or `llava_next` config.json.

    preprocessor, processor: the files preprocessor_config.json and processor_config.json.
    Raises CheckpointError for an activation, tower or feature strategy without a counterpart.
    """
    native: Any = as_config({k: v for k, v in config.items() if k != "architectures"})
    vision, text = native.vision_config, native.text_config
    kind = encoder_kind({"model_type": vision.model_type}, where=where)
    if native.projector_hidden_act != "gelu":
        raise CheckpointError(
            f"projector_hidden_act {native.projector_hidden_act!r}", where=where, rule="known: gelu"
        )
    whole = native.vision_feature_select_strategy == "full"
    if not whole and kind != "clip":
        raise CheckpointError(
            f"strategy 'default' on a {vision.model_type}",
            where=where,
            rule="it drops a class token, which this tower does not have",
        )
    layers = native.vision_feature_layer
    takes = [
        {"kind": "take", "encoder": ENCODER, "layer": int(layer), "prefix": whole}
        for layer in (layers if isinstance(layers, list | tuple) else [layers])
    ]
    connector = {
        "kind": "mlp",
        "depth": 2,
        "bias": bool(native.multimodal_projector_bias),
        "of": takes[0] if len(takes) == 1 else {"kind": "channel", "parts": takes},
    }
    following = config.get("model_type") == "llava_next"
    layout = {"kind": "newline", "unpad": True, "snap": True} if following else {"kind": "plain"}
    ours = RetinueConfig(
        text_config=text,
        encoders={ENCODER: vision},
        spec={
            "encoders": {ENCODER: {"kind": kind, **norm_fields(preprocessor)}},
            "connector": connector,
            "layout": layout,
            "fusion": {"kind": "splice"},
            "image_token_id": int(native.image_token_index),
        },
        tie_word_embeddings=bool(native.tie_word_embeddings),
        **{
            FOREIGN: {
                "format": "hf",
                "config": dict(config),
                "preprocessor": dict(preprocessor),
                "processor": dict(processor),
            }
        },
    )
    return Translation(
        config=ours,
        processor={
            "template": {"name": TEMPLATES.get(text.model_type)},
            "views": hf_views(int(vision.image_size), config, preprocessor),
            "streams": {"rgb": stream(vision.image_size, preprocessor, where=where)},
            "max_tokens": None,
        },
        keys=hf_keys(text),
    )


def hf_keys(text: Any, *, vision_model: bool = True) -> KeyMap:
    """Rules for every layout; `text`: the language model's config, which names its inner model."""
    inner = base_prefix(text)
    rules: list[Rule] = []
    for prefix in ("", "model."):
        rules += [
            Rule(f"{prefix}multi_modal_projector.{theirs}.{{rest}}", f"connector.{ours}.{{rest}}")
            for theirs, ours in LINEAR.items()
        ]
        rules += [
            *tower_rules(ENCODER, f"{prefix}vision_tower.", vision_model=vision_model),
            Rule(f"{prefix}image_newline", "layout.newline"),
        ]
    rules += [
        Rule("language_model.{rest}", "lm.{rest}"),
        Rule("model.language_model.{rest}", f"lm.{inner}.{{rest}}"),
        Rule("lm_head.{rest}", "lm.lm_head.{rest}"),
    ]
    return KeyMap(rules)


def base_prefix(text: Any) -> str:
    """Name under which a causal LM keeps its inner model ("model" for most)."""
    from retinue.model.lm.support import causal_class

    return str(causal_class(text).base_model_prefix)
