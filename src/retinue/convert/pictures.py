"""Picture preparation of foreign folders: preprocessor_config.json and LLaVA's aspect modes.

Each pair of functions reads and writes the same facts: a view policy and a pixel stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.convert.translation import Tower
from retinue.core.errors import CheckpointError

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as preprocessor_config.json writes them."""


def stream_of(tower: Tower) -> dict[str, Any]:
    """The pixel stream of a tower: side from its config, the rest from its preprocessor."""
    return stream(tower.config["image_size"], tower.preprocessor, where=str(tower.folder))


def stream(side: int, preprocessor: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """StreamSpec fields. Raises CheckpointError for steps that no stream has."""
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if preprocessor.get(step) is False:
            raise CheckpointError(f"{step} is off", where=where, rule="every picture gets it")
    fields: dict[str, Any] = {"size": int(side)}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if preprocessor.get(theirs):
            fields[ours] = list(preprocessor[theirs])
    if preprocessor.get("rescale_factor"):
        fields["rescale"] = preprocessor["rescale_factor"]
    if preprocessor.get("resample") is not None:
        fields["interpolation"] = FILTERS[int(preprocessor["resample"])]
    return fields


def whole_view(side: int, preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The policy that a CLIP-like preprocessor means: cut from the middle, or squashed."""
    size = preprocessor.get("size") or {}
    if isinstance(size, int):
        size = {"shortest_edge": size}
    if not size.get("shortest_edge") and size.get("height"):
        return {"kind": "squash"}
    edge = int(size.get("shortest_edge") or side)
    return {"kind": "single"} if edge == side else {"kind": "single", "shortest_edge": edge}


def preprocessor_of(stream: Mapping[str, Any], views: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessor_config.json for a stream and view policy of ours."""
    height, width = stream["size"]
    fields: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": int(views.get("shortest_edge") or max(height, width))},
        "resample": {name: number for number, name in FILTERS.items()}[stream["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": stream["rescale"],
        "do_normalize": True,
        "image_mean": list(stream["mean"]),
        "image_std": list(stream["std"]),
    }
    if views["kind"] == "squash":
        fields |= {"size": {"height": height, "width": width}, "do_center_crop": False}
    return fields


def hf_views(
    side: int, config: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> dict[str, Any]:
    """The policy of a HF Llava or LlavaNext folder."""
    if config.get("model_type") == "llava_next":
        pairs = preprocessor.get("image_grid_pinpoints") or config["image_grid_pinpoints"]
        return {"kind": "anyres", "pinpoints": [list(pair) for pair in pairs], "order": "hw"}
    named = str(preprocessor.get("image_processor_type", ""))
    if preprocessor.get("do_pad") and named.startswith("LlavaImageProcessor"):
        return {"kind": "pad"}
    return whole_view(side, preprocessor)
