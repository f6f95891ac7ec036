"""Our models as the original LLaVA's config.json and parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.convert.internlm import AS_GROUPED, AS_LLAMA, GROUPED
from retinue.convert.internlm_export import moss2_fields
from retinue.convert.keymap import KeyMap
from retinue.convert.llava import ENCODER, MARKS, llava_keys
from retinue.convert.nested import BARE, NESTED, SCALES, scale_fields, unwrapped
from retinue.convert.towers import tower_rules
from retinue.convert.translation import foreign
from retinue.core.errors import CheckpointError
from retinue.model.spec import ModelSpec, RetinueConfig

CLASSES = {
    "llama": ("llava_llama", "LlavaLlamaForCausalLM"),
    "mistral": ("llava_mistral", "LlavaMistralForCausalLM"),
}
MOSS2 = ("llava_moss2", "LlavaMoss2ForCausalLM")
OWN_TOWER = "vision_tower"
"""Folder beside the weights for a tower that has no public name."""


def refuse(what: str, rule: str) -> CheckpointError:
    """The error of a model that LLaVA's format has no words for."""
    return CheckpointError(what, where="export to llava", rule=rule, fix="keep it as retinue")


def single_take(spec: ModelSpec) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(encoder name, connector node, take node) of a connector over one encoder layer.

    Pooling around the connector is M3's and no part of the node.
    """
    node, _ = unwrapped(spec.connector.model_dump())
    take = node.get("of", {})
    if len(spec.encoders) != 1 or take.get("kind") != "take":
        raise refuse(
            f"a connector {node['kind']!r} over {len(spec.encoders)} encoders",
            "the format has one projector over one layer of one tower",
        )
    return take["encoder"], node, take


def projector_type(node: Mapping[str, Any]) -> str:
    """`mm_projector_type` of a connector node."""
    if node["kind"] == "identity":
        return "identity"
    plain = node.get("bias", True) and not any(node.get(key) for key in ("out", "hidden", "units"))
    if node["kind"] == "linear" and plain:
        return "linear"
    if node["kind"] == "mlp" and plain:
        return f"mlp{node['depth']}x_gelu"
    raise refuse(f"a connector {node['kind']!r}", "the format has linear, identity and mlpNx_gelu")


def export_llava(
    config: RetinueConfig,
    processor: Mapping[str, Any],
    *,
    dtype: str | None,
    carry_tower: bool,
    moss2: bool = False,
) -> dict[str, Any]:
    """config.json as the original reads it. Raises CheckpointError for what it cannot say.

    processor: settings as in processor.json; carry_tower: the weights hold the tower, and its
    sizes stand in `vision_tower/` unless the config came with a tower's name; moss2: as
    `llava_moss2`. What an imported config said beyond our words is kept.
    """
    spec = ModelSpec.parse(config.spec, where="model")
    name, node, take = single_take(spec)
    if spec.encoders[name].kind != "clip":
        raise refuse(f"an encoder {spec.encoders[name].kind!r}", "the format's tower is CLIP")
    text = config.get_text_config()
    if text.model_type not in CLASSES:
        raise refuse(f"a language model {text.model_type!r}", f"the format has {list(CLASSES)}")
    kept = foreign(config)
    named = dict(kept["config"]) if kept.get("format") == "llava" else {}
    old = named if (named.get("model_type") in GROUPED) == moss2 else {}
    kind, cls = MOSS2 if moss2 else CLASSES[text.model_type]
    words = moss2_fields(text, dtype=dtype) if moss2 else text_dict(text)
    base = old or {**words, "model_type": kind}
    fields = {
        "architectures": [cls],
        "mm_vision_tower": named.get("mm_vision_tower", OWN_TOWER),
        "mm_hidden_size": config.encoders[name].hidden_size,
        "mm_projector_type": projector_type(node),
        "mm_vision_select_layer": take["layer"],
        "mm_vision_select_feature": "cls_patch" if take["prefix"] else "patch",
        "use_mm_proj": True,
        "vocab_size": text.vocab_size,
        "tokenizer_model_max_length": processor.get("max_tokens"),
        **_absent(old, {"tokenizer_padding_side": "right"}),
        **_pictures(spec, processor, old),
        **_marks(processor, old),
        "unfreeze_mm_vision_tower": _reads_tower(kept, old, carry_tower=carry_tower),
    }
    fields |= scale_fields(config, old)
    if dtype:
        fields["torch_dtype"] = dtype
    if old:  # absent fields that the original reads as the value we would write stay absent
        fields = {k: v for k, v in fields.items() if k in old or v != DEFAULTS.get(k)}
    return {**base, **fields}


DEFAULTS: dict[str, Any] = {
    "mm_projector_type": "linear",
    "mm_vision_select_feature": "patch",
    "mm_patch_merge_type": "flat",
    "tokenizer_model_max_length": None,
    "image_aspect_ratio": None,
    "mm_use_im_start_end": False,
    "unfreeze_mm_vision_tower": False,
    SCALES: None,
}
"""What the original takes an absent field for."""


def _reads_tower(kept: Mapping[str, Any], old: Mapping[str, Any], *, carry_tower: bool) -> bool:
    """The original reads a tower inside a checkpoint only where this field is true."""
    if carry_tower and not kept.get("tower_carried"):
        return True
    return bool(old.get("unfreeze_mm_vision_tower", carry_tower))


def _absent(old: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if not old or key in old}


def _pictures(
    spec: ModelSpec, processor: Mapping[str, Any], old: Mapping[str, Any]
) -> dict[str, Any]:
    """Aspect mode and merge type, as far as views and layout differ from what `old` meant."""
    views, layout = processor["views"], spec.layout.model_dump()
    merge = old.get("mm_patch_merge_type") or "flat"
    if layout["kind"] == "newline":
        if layout.get("unpad") != layout.get("newline"):
            raise refuse(
                "a layout with only one of unpad and newline", "the format has both or none"
            )
        wanted = "spatial_unpad" if layout["unpad"] else "spatial"
        merge = (
            merge if merge.startswith(wanted) and ("unpad" in merge) == layout["unpad"] else wanted
        )
    elif views["kind"] == "anyres":
        merge = "flat"
    if views["kind"] == "pad":
        return {"image_aspect_ratio": "pad", "mm_patch_merge_type": merge}
    if views["kind"] == "single":
        mode = old.get("image_aspect_ratio")
        mode = "square" if mode in ("pad", "anyres") or not old else mode
        return {"image_aspect_ratio": mode, "mm_patch_merge_type": merge}
    if views["kind"] != "anyres":
        raise refuse(f"a view policy {views['kind']!r}", "the format has pad, anyres and CLIP's")
    step = 1 if views.get("order", "wh") == "wh" else -1
    pairs = [list(pair)[::step] for pair in views["pinpoints"]]
    said = old.get("image_grid_pinpoints")
    same = isinstance(said, str) and str(pairs).replace(" ", "") == said.replace(" ", "")
    return {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": merge,
        "image_grid_pinpoints": said if same else pairs,
    }


def _marks(processor: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    template = processor.get("template") or {}
    bounds = list(template.get("bounds") or []) if isinstance(template, Mapping) else []
    fields: dict[str, Any] = {"mm_use_im_start_end": bounds == MARKS}
    if not old:
        fields["mm_use_im_patch_token"] = False
    return fields


def text_dict(text: Any) -> dict[str, Any]:
    """A language model's config with the field names of transformers 4 and 5 side by side."""
    fields: dict[str, Any] = text.to_dict()
    rope = dict(fields.get("rope_parameters") or {})
    if "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
        scaled = {k: v for k, v in rope.items() if k != "rope_theta"}
        if scaled.get("rope_type", "default") == "default":
            fields["rope_scaling"] = None
        else:
            fields["rope_scaling"] = {"type": scaled["rope_type"], **scaled}
    if fields.get("dtype"):
        fields["torch_dtype"] = str(fields["dtype"]).removeprefix("torch.")
    return fields


def export_keys(config: RetinueConfig, *, carry_tower: bool, moss2: bool = False) -> KeyMap:
    """Rules for the names to write; without `carry_tower` the tower's names have none."""
    spec = ModelSpec.parse(config.spec, where="model")
    name, _, _ = single_take(spec)
    place = NESTED if spec.connector.kind == "elastic" else BARE
    language = AS_GROUPED if moss2 else AS_LLAMA
    rules = list(llava_keys(projector=place, language=language).rules)
    rules = [rule for rule in rules if not rule.template.startswith(f"encoders.{ENCODER}.")]
    if carry_tower:
        rules = [*tower_rules(name, "model.vision_tower.vision_tower."), *rules]
    return KeyMap(rules)
