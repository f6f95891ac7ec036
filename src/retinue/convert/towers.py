"""Vision towers: which encoder a config means, its key rules, published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue.convert.detect import TOWERS, detect
from retinue.convert.keymap import IGNORABLE, KeyMap, Rule
from retinue.convert.translation import Tower
from retinue.convert.weights import Weights, read_json
from retinue.core.errors import CheckpointError

OPENAI: dict[str, dict[str, Any]] = {
    f"openai/clip-vit-large-patch14{suffix}": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": size,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    }
    for suffix, size in (("", 224), ("-336", 336))
}
"""Published sizes of the two towers that released checkpoints name and may carry themselves."""

TEXT_HALF = ("text_model.{_}", "logit_scale", "logit_bias", "{_}_projection.weight")
"""Keys of a whole CLIP or SigLIP that a vision tower has no use for."""


def tower_rules(name: str, prefix: str = "", *, vision_model: bool = True) -> list[Rule]:
    """Rules between a tower's keys under `prefix` and ours.

    Both spellings are read, with and without `vision_model.`; the flag chooses which is written.
    """
    ours = f"encoders.{name}.net.{{rest}}"
    return [
        Rule(f"{prefix}vision_model.{{rest}}", ours, written=vision_model),
        Rule(f"{prefix}{{rest}}", ours),
    ]


def tower_keys(name: str) -> KeyMap:
    """Rules for a tower's own folder, whole CLIP models included."""
    return KeyMap(tower_rules(name), ignorable=(*IGNORABLE, *TEXT_HALF))


def encoder_kind(config: Mapping[str, Any], *, where: str) -> str:
    """Our encoder kind of a backbone config. Raises CheckpointError naming the known ones."""
    kind = str(config.get("model_type"))
    if kind not in TOWERS:
        raise CheckpointError(
            f"a vision tower of model_type {kind!r}",
            where=where,
            rule=f"known: {', '.join(sorted(TOWERS))}",
        )
    return TOWERS[kind]


def vision_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision half of a tower's config.json, with its model_type."""
    kind = config.get("model_type")
    if kind in ("clip", "siglip"):
        half = dict(config.get("vision_config") or {})
        return {**half, "model_type": f"{kind}_vision_model"}
    return dict(config)


def open_tower(folder: Path, *, source: str) -> Tower:
    """A vision tower from its own folder. Raises CheckpointError if the folder is none."""
    found = detect(folder)
    if found.format != "vision-tower":
        raise CheckpointError(
            f"is no vision tower but {found.format}",
            where=str(folder),
            rule="a tower's config.json has one of the model types " + ", ".join(sorted(TOWERS)),
        )
    file = folder / "preprocessor_config.json"
    return Tower(
        kind=encoder_kind(found.config, where=str(folder)),
        config=vision_config(found.config),
        weights=found.weights,
        source=source,
        folder=folder,
        preprocessor=read_json(file) if file.exists() else {},
    )


def carried_tower(name: str, weights: Weights) -> Tower | None:
    """A tower whose sizes are published and whose weights the checkpoint holds, else None."""
    if name not in OPENAI:
        return None
    return Tower(
        kind="clip", config=OPENAI[name], weights=Weights([]), source="the checkpoint", folder=None
    )


def norm_fields(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """mean and std of an encoder spec, as far as a preprocessor_config.json states them."""
    fields = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if preprocessor.get(theirs):
            fields[ours] = tuple(preprocessor[theirs])
    return fields
