"""The original LLaVA's checkpoints in our terms: config, key rules, defaults of its architectures.

Reference: haotian-liu/LLaVA (config fields and parameter names of its 1.x releases).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retinue.convert.internlm import AS_LLAMA, language_fields, language_rules
from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.nested import BARE, nested, projector_place, scales_of, settle_rounding
from retinue.convert.pictures import stream_of, whole_view
from retinue.convert.towers import norm_fields, tower_rules
from retinue.convert.translation import FOREIGN, Tower, Translation
from retinue.core.errors import CheckpointError
from retinue.model.spec import RetinueConfig

ENCODER = "clip"
"""Name of the one encoder of an imported LLaVA."""

IMAGE_ID = -200
"""Placeholder id of the original, which no tokenizer can produce."""

TEXT_TYPES = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral"}
TEMPLATES = {
    "llama": "vicuna_v1",
    "mistral": "mistral_instruct",
    "llava_moss2": "llava_llama_2",
    **dict.fromkeys(("Moss2", "moss2"), "moss2"),
    **dict.fromkeys(("internlm2", "internlm"), "chatml"),
}
"""The conversation that each architecture's documentation names as its default."""

TOWER_PREFIX = "model.vision_tower.vision_tower."
MARKS = ["<im_start>", "<im_end>"]
"""What `mm_use_im_start_end` puts around every picture."""

WRAP = "base_model.model."
"""What PEFT puts before every name."""

OWN_FIELDS = re.compile(
    r"(mm|image|tune|freeze|unfreeze|use_mm|tokenizer|matryoshka|s2|vision_tower)(_.*)?"
)
NOT_TEXT = ("architectures", "model_type", "transformers_version", "_name_or_path", "auto_map")


def text_type(config: Mapping[str, Any]) -> str:
    """model_type of the language model inside. Raises CheckpointError for one we cannot drive."""
    kind = str(config.get("model_type"))
    if kind == "llava_mpt":
        raise CheckpointError(
            "LLaVA on MPT",
            where="config.json",
            rule="the original's MPT class cannot run a forward pass, so there is nothing to match",
        )
    return TEXT_TYPES.get(kind, kind)


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's own config fields."""
    fields = {k: v for k, v in config.items() if not OWN_FIELDS.fullmatch(k) and k not in NOT_TEXT}
    return language_fields({**fields, "model_type": text_type(config)}, where="config.json")


def import_llava(config: Mapping[str, Any], tower: Tower, *, where: str) -> Translation:
    """Our config, processor settings and key rules of an original LLaVA config.json.

    Raises CheckpointError for a projector, merge or feature type the original does not have.
    """
    connector = nested(connector_of(config, where=where), scales_of(config, where=where))
    kind = text_type(config)
    anyres = config.get("image_aspect_ratio") == "anyres"
    merge = str(config.get("mm_patch_merge_type") or "flat")
    if merge != "flat" and not merge.startswith("spatial"):
        raise CheckpointError(
            f"mm_patch_merge_type {merge!r}",
            where=where,
            rule="known: flat, spatial, spatial_unpad",
        )
    unpad = "unpad" in merge
    layout: dict[str, Any] = {"kind": "plain"}
    if anyres and merge.startswith("spatial"):
        layout = {"kind": "newline", "unpad": unpad, "newline": unpad}
    ours = RetinueConfig(
        text_config=text_fields(config),
        encoders={ENCODER: tower.config},
        spec={
            "encoders": {ENCODER: {"kind": tower.kind, **norm_fields(tower.preprocessor)}},
            "connector": connector,
            "layout": layout,
            "fusion": {"kind": "splice"},
            "image_token_id": IMAGE_ID,
        },
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        **{FOREIGN: {"format": "llava", "config": dict(config)}},
    )
    settle_rounding(ours, where=where)
    template: dict[str, Any] = {"name": TEMPLATES.get(kind)}
    if config.get("mm_use_im_start_end"):
        template["bounds"] = MARKS
    return Translation(
        config=ours,
        processor={
            "template": template,
            "views": views_of(config, tower, where=where),
            "streams": {"rgb": stream_of(tower)},
            "max_tokens": config.get("tokenizer_model_max_length"),
        },
        keys=llava_keys(
            projector=projector_place(config, where=where), language=language_rules(config)
        ),
    )


def views_of(config: Mapping[str, Any], tower: Tower, *, where: str) -> dict[str, Any]:
    """The view policy of `image_aspect_ratio`; absent or unknown modes cut out the middle."""
    mode = config.get("image_aspect_ratio")
    if mode == "pad":
        return {"kind": "pad"}
    if mode == "anyres":
        pairs = pinpoints_of(config.get("image_grid_pinpoints"), where=where)
        return {"kind": "anyres", "pinpoints": pairs, "order": "wh"}
    view = whole_view(int(tower.config["image_size"]), tower.preprocessor)
    return {**view, "axes": "guessed"} if view["kind"] == "single" else view


def with_projector(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A config whose `mm_projector_type` is that of the weights.

    The original writes `linear` beside an MLP, because it saves its command's default.
    """
    found = [name.rpartition("mm_projector.")[2] for name in names if "mm_projector." in name]
    layers = {name.partition(".")[0] for name in found if name.endswith("weight")}
    said = config.get("mm_projector_type") or "linear"
    if not layers or (layers == {"weight"}) == (said == "linear"):
        return dict(config)
    kind = "linear" if layers == {"weight"} else f"mlp{len(layers)}x_gelu"
    return {**config, "mm_projector_type": kind}


def connector_of(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The connector tree of `mm_projector_type` and the `mm_vision_select_*` fields."""
    feature = config.get("mm_vision_select_feature") or "patch"
    if feature not in ("patch", "cls_patch"):
        raise CheckpointError(
            f"mm_vision_select_feature {feature!r}", where=where, rule="known: patch, cls_patch"
        )
    if config.get("mm_vision_select_layer") is None:
        raise CheckpointError("mm_vision_select_layer is missing", where=where)
    take = {
        "kind": "take",
        "encoder": ENCODER,
        "layer": int(config["mm_vision_select_layer"]),
        "prefix": feature == "cls_patch",
    }
    name = config.get("mm_projector_type") or "linear"
    if name in ("linear", "identity"):
        return {"kind": name, "of": take}
    depth = re.fullmatch(r"mlp(\d+)x_gelu", str(name))
    if depth is None:
        raise CheckpointError(
            f"unknown projector type {name!r}",
            where=where,
            rule="mm_projector_type is linear, identity or mlpNx_gelu",
        )
    return {"kind": "mlp", "depth": int(depth[1]), "of": take}


def pinpoints_of(value: Any, *, where: str) -> list[list[int]]:
    """(width, height) pairs of `image_grid_pinpoints`, which may be a list or its text."""
    try:
        pairs = ast.literal_eval(value) if isinstance(value, str) else value
        return [[int(width), int(height)] for width, height in pairs]
    except (ValueError, SyntaxError, TypeError) as error:
        raise CheckpointError(
            "image_grid_pinpoints are no list of [width, height] pairs", where=where
        ) from error


def llava_keys(
    *,
    projector: str = BARE,
    vision_model: bool = True,
    language: Sequence[Rule] = AS_LLAMA,
) -> KeyMap:
    """Rules for the original's parameter names; what no other rule names is the language model's.

    projector: our place of `mm_projector`, see `projector_place`; language: the rules of its
    language model, see `language_rules`.
    """
    return KeyMap(
        [
            *tower_rules(ENCODER, TOWER_PREFIX, vision_model=vision_model),
            Rule("model.mm_projector.{rest}", f"{projector}.{{rest}}"),
            Rule("model.image_newline", "layout.newline"),
            *language,
        ]
    )


def projector_keys(*, projector: str = BARE) -> KeyMap:
    """Rules for `mm_projector.bin`: only what follows `mm_projector.` counts."""
    return KeyMap(
        [
            Rule("{_}.mm_projector.{rest}", f"{projector}.{{rest}}", written=False),
            Rule("mm_projector.{rest}", f"{projector}.{{rest}}", written=False),
            Rule("{_}.image_newline", "layout.newline", written=False),
            Rule("model.embed_tokens.{rest}", "lm.model.embed_tokens.{rest}"),
        ]
    )


def non_lora_keys(*, projector: str = BARE) -> KeyMap:
    """Rules for `non_lora_trainables.bin`, with or without the PEFT prefix."""
    bare = llava_keys(projector=projector)
    wrapped = bare.under(WRAP)
    return KeyMap([*wrapped.rules, *bare.rules], [*wrapped.ignorable, *bare.ignorable])
