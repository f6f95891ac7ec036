"""open_clip's vision transformers in our terms: names of transformers' CLIP, q, k and v apart.

Reference: mlfoundations/open_clip (model configs and parameter names).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from retinue.convert.flamingo import TensorTable, state_of
from retinue.convert.translation import Tower
from retinue.core.errors import CheckpointError

NAMES = {
    r"class_embedding": "embeddings.class_embedding",
    r"positional_embedding": "embeddings.position_embedding.weight",
    r"conv1\.weight": "embeddings.patch_embedding.weight",
    r"ln_pre\.(.+)": r"pre_layrnorm.\1",
    r"ln_post\.(.+)": r"post_layernorm.\1",
    r"transformer\.resblocks\.(\d+)\.ln_(\d)\.(.+)": r"encoder.layers.\1.layer_norm\2.\3",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)": (
        r"encoder.layers.\1.self_attn.out_proj.\2"
    ),
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)": r"encoder.layers.\1.mlp.fc1.\2",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)": r"encoder.layers.\1.mlp.fc2.\2",
}
PACKED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
OTHER = ("transformer.", "token_embedding.", "text_projection", "logit_scale", "ln_final.")
"""The text tower, where a file holds a whole CLIP: its blocks are not below `visual.`."""


def vision_table(tensors: Mapping[str, tuple[Path, Tensor]]) -> TensorTable:
    """Vision tensors by open_clip's names -> by transformers'; what the tower lacks is left out."""
    entries: dict[str, tuple[Path, Callable[[], Tensor]]] = {}
    for name, (file, tensor) in tensors.items():
        packed = PACKED.fullmatch(name)
        if packed:
            for number, part in enumerate("qkv"):
                own = f"encoder.layers.{packed[1]}.self_attn.{part}_proj.{packed[2]}"
                entries[own] = file, _third(tensor, number)
            continue
        for pattern, template in NAMES.items():
            if re.fullmatch(pattern, name):
                entries[re.sub(pattern, template, name)] = file, _third(tensor, None)
    return TensorTable(entries)


def _third(tensor: Tensor, number: int | None) -> Callable[[], Tensor]:
    return lambda: tensor if number is None else tensor.chunk(3)[number]


def clip_config(config: Mapping[str, Any], *, quick: bool | None = None) -> dict[str, Any]:
    """transformers' fields of an open_clip model config; quick: its activation, None = its own."""
    vision = config["vision_cfg"]
    quick = bool(config.get("quick_gelu")) if quick is None else quick
    return {
        "model_type": "clip_vision_model",
        "hidden_size": int(vision["width"]),
        "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": int(vision["layers"]),
        "num_attention_heads": int(vision["width"]) // int(vision.get("head_width", 64)),
        "patch_size": int(vision["patch_size"]),
        "image_size": int(vision["image_size"]),
        "hidden_act": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": int(config["embed_dim"]),
    }


def open_clip_tower(file: Path) -> Tower:
    """A tower from open_clip's weights `NAME.pt` with its model config `NAME.json` beside it.

    Raises CheckpointError without one of them.
    """
    state, beside = state_of(file), file.with_suffix(".json")
    if not beside.exists():
        raise CheckpointError(
            f"no model config {beside.name} beside it", where=str(file), fix="copy it there"
        )
    if state is None or not any(name.startswith("visual.") for name in state):
        raise CheckpointError(
            "holds no open_clip weights", where=str(file), rule="their names start with visual."
        )
    tensors = {n.removeprefix("visual."): (file, t) for n, t in state.items() if "visual." in n}
    return Tower(
        kind="clip",
        config=clip_config(json.loads(beside.read_text("utf-8"))),
        weights=vision_table(tensors),
        source=str(file),
        folder=file.parent,
    )
