"""Our models as transformers' Llava and LlavaNext: config, names, processor files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.convert.detect import TOWERS
from retinue.convert.hf import LINEAR, base_prefix
from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.llava_export import text_dict
from retinue.convert.nested import unwrapped
from retinue.convert.pictures import preprocessor_of
from retinue.convert.towers import tower_rules
from retinue.convert.translation import foreign
from retinue.core.errors import CheckpointError
from retinue.model.spec import ModelSpec, RetinueConfig, as_config

CLASSES = {
    "llava": ("LlavaForConditionalGeneration", "LlavaProcessor"),
    "llava_next": ("LlavaNextForConditionalGeneration", "LlavaNextProcessor"),
}


def refuse(what: str, rule: str) -> CheckpointError:
    """The error of a model that neither class can be."""
    return CheckpointError(what, where="export to hf", rule=rule, fix="keep it as retinue")


def encoder_of(spec: ModelSpec) -> str:
    """The one encoder of a model that the format can express."""
    if len(spec.encoders) != 1:
        raise refuse(f"{len(spec.encoders)} encoders", "the format has one vision tower")
    return next(iter(spec.encoders))


def export_hf(
    config: RetinueConfig, processor: Mapping[str, Any], *, dtype: str | None, image_token_id: int
) -> dict[str, Any]:
    """config.json of the class that fits. Raises CheckpointError for what neither can be.

    processor: settings as in processor.json; image_token_id: of `<image>` in the vocabulary that
    is written. A config that came from transformers is given back with what changed since.
    """
    spec = ModelSpec.parse(config.spec, where="model")
    name = encoder_of(spec)
    if config.encoders[name].model_type not in TOWERS:
        raise refuse(
            f"an encoder {spec.encoders[name].kind!r}",
            f"the format's tower is one of {', '.join(sorted(TOWERS))}",
        )
    if spec.budget is not None:
        raise refuse(
            f"a model that answers with {spec.budget} visual tokens per view",
            "transformers' classes always use all, so the answers would differ",
        )
    takes, bias = _takes(spec)
    kind = _kind(spec, processor)
    whole = takes[0]["prefix"]
    if spec.encoders[name].kind != "clip" and not whole:
        whole = True  # without prefix tokens, "full" says the same
    layers = [take["layer"] for take in takes]
    fields: dict[str, Any] = {
        "model_type": kind,
        "architectures": [CLASSES[kind][0]],
        "image_token_index": image_token_id,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": bias,
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
        "vision_feature_select_strategy": "full" if whole else "default",
        "tie_word_embeddings": bool(config.get_text_config().tie_word_embeddings),
    }
    if kind == "llava_next":
        fields["image_grid_pinpoints"] = _pinpoints(processor)
    if dtype:
        fields["dtype"] = dtype
    kept = foreign(config)
    if kept.get("format") == "hf" and kept["config"].get("model_type") == kind:
        old = dict(kept["config"])
        native = as_config({k: v for k, v in old.items() if k != "architectures"})
        said = {k: getattr(native, k, None) for k in fields}
        # Sparse configs stay sparse: only what is stated, or differs from the default, is written.
        if dtype and "torch_dtype" in old:
            fields["torch_dtype"] = fields.pop("dtype")
        old |= {k: v for k, v in fields.items() if k in old or said.get(k) not in (v, None)}
        if native.text_config.vocab_size != config.get_text_config().vocab_size:
            old["text_config"] = {
                **old["text_config"],
                "vocab_size": config.get_text_config().vocab_size,
            }
        return old
    text = text_dict(config.text_config)
    vision = config.encoders[name].to_dict()
    side = vision["image_size"] // vision["patch_size"]
    return {
        **fields,
        "image_seq_length": side * side + int(whole and spec.encoders[name].kind == "clip"),
        "text_config": text,
        "vision_config": vision,
    }


def _takes(spec: ModelSpec) -> tuple[list[dict[str, Any]], bool]:
    node, _ = unwrapped(spec.connector.model_dump())
    below = node.get("of", {})
    takes = [below] if below.get("kind") == "take" else below.get("parts", [])
    plain = node["kind"] == "mlp" and node["depth"] == 2
    plain = plain and not any(node.get(key) for key in ("out", "hidden", "units"))
    leaves = bool(takes) and all(take.get("kind") == "take" for take in takes)
    if not plain or not leaves or below.get("kind") == "sequence":
        raise refuse(
            f"a connector {node['kind']!r}", "the format has a 2-layer MLP over layers of one tower"
        )
    if len({take["prefix"] for take in takes}) > 1:
        raise refuse("layers with and without class token", "the format treats all layers alike")
    return takes, bool(node.get("bias", True))


def _kind(spec: ModelSpec, processor: Mapping[str, Any]) -> str:
    layout, views = spec.layout.model_dump(), processor["views"]["kind"]
    if layout["kind"] == "newline" and layout["unpad"] and layout["newline"] and views == "anyres":
        return "llava_next"
    if layout["kind"] == "plain" and views in ("pad", "single", "squash"):
        return "llava"
    raise refuse(
        f"layout {layout['kind']!r} with views {views!r}",
        "llava is one view and a plain layout, llava_next is anyres, unpadded, with newlines",
    )


def _pinpoints(processor: Mapping[str, Any]) -> list[list[int]]:
    views = processor["views"]
    step = -1 if views.get("order", "wh") == "wh" else 1
    return [list(pair)[::step] for pair in views["pinpoints"]]


def processor_files(
    config: RetinueConfig, processor: Mapping[str, Any], exported: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """preprocessor_config.json and processor_config.json beside an exported config."""
    kind = str(exported["model_type"])
    spec = ModelSpec.parse(config.spec, where="model")
    name = encoder_of(spec)
    views, stream = processor["views"], next(iter(processor["streams"].values()))
    pictures = preprocessor_of(stream, views)
    if kind == "llava_next":
        pictures |= {
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": exported["image_grid_pinpoints"],
            "do_pad": True,
        }
    elif views["kind"] == "pad":
        pictures |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    else:
        named = "SiglipImageProcessor" if views["kind"] == "squash" else "CLIPImageProcessor"
        pictures["image_processor_type"] = named
    pictures["processor_class"] = CLASSES[kind][1]
    kept = foreign(config)
    said = dict(kept.get("processor") or {}) if kept.get("format") == "hf" else {}
    said.pop("image_processor", None)
    vision = config.encoders[name]
    facts = {
        "processor_class": CLASSES[kind][1],
        "image_token": said.get("image_token", "<image>"),
        "patch_size": vision.patch_size,
        "num_additional_image_tokens": int(spec.encoders[name].kind == "clip"),
        "vision_feature_select_strategy": exported.get("vision_feature_select_strategy", "default"),
    }
    return {"preprocessor_config.json": pictures, "processor_config.json": {**said, **facts}}


def export_keys(config: RetinueConfig) -> KeyMap:
    """Rules for the names to write: the layout of transformers 4, which every version loads."""
    spec = ModelSpec.parse(config.spec, where="model")
    name = encoder_of(spec)
    inner = base_prefix(config.text_config)
    place = "connector.of" if spec.connector.kind == "elastic" else "connector"
    rules = [
        Rule(f"multi_modal_projector.{theirs}.{{rest}}", f"{place}.{ours}.{{rest}}")
        for theirs, ours in LINEAR.items()
    ]
    rules += tower_rules(name, "vision_tower.", vision_model=spec.encoders[name].kind != "dinov2")
    rules += [
        Rule("image_newline", "layout.newline"),
        Rule(f"language_model.{inner}.{{rest}}", f"lm.{inner}.{{rest}}"),
        Rule("language_model.{rest}", "lm.{rest}"),
    ]
    return KeyMap(rules)
