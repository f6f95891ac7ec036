"""Adapters of any naming put onto a loaded model, checked tensor by tensor first."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from retinue.convert.keymap import KeyMap
from retinue.convert.llava import llava_keys
from retinue.core.files import write_json
from retinue.hub.lora import Lora, Pair, check_fit, read_lora
from retinue.hub.sources import Opened
from retinue.model.adapters import CONFIG_FILE, WEIGHTS_FILE, base_state, load_adapter
from retinue.model.quant.swap import quantized_shapes
from retinue.model.retinue import Retinue


def attach(
    model: Retinue,
    folder: Path,
    *,
    opened: Opened,
    name: str,
    device: str | torch.device | None = "cpu",
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Put a LoRA folder onto the model; names of the base's own format are understood.

    device: of the whole model afterwards; None: each part stays where it is.
    whole: shapes of weights of which the model holds a part only.

    Raises CheckpointError naming the first tensor that does not fit, with both shapes.
    """
    lora = read_lora(folder)
    shapes = base_state(model) | quantized_shapes(model) | dict(whole or {})
    maps = [*(source.keys for source in opened.sources), llava_keys()]
    fitted = check_fit(lora, shapes, lambda key: _rename(key, maps, shapes))
    with tempfile.TemporaryDirectory() as scratch:
        _rewrite(lora, fitted, Path(scratch))
        load_adapter(model, scratch, name=name)
    if device is not None:
        model.to(device)


def _rename(key: str, maps: list[KeyMap], shapes: dict[str, Tensor]) -> str | None:
    found = (keys.to_retinue(key) for keys in maps)
    return next((name for name in found if name in shapes), None)


def _rewrite(lora: Lora, fitted: dict[str, Pair], folder: Path) -> None:
    """The same adapter under our names, so that one reader serves all."""
    fields: dict[str, Any] = dict(lora.config)
    fields |= {"target_modules": sorted(fitted), "layers_to_transform": None}
    for patterns in ("rank_pattern", "alpha_pattern"):
        fields[patterns] = {}
    ranks = {module: lora.weights.shape(pair.down)[0] for module, pair in fitted.items()}
    alpha = {
        module: lora.scale(pair.module, ranks[module])
        * (ranks[module] ** 0.5 if fields.get("use_rslora") else ranks[module])
        for module, pair in fitted.items()
    }
    fields["rank_pattern"] = {
        exactly(module): rank for module, rank in ranks.items() if rank != fields.get("r")
    }
    fields["alpha_pattern"] = {
        exactly(module): a for module, a in alpha.items() if a != fields.get("lora_alpha")
    }
    state = {}
    for module, pair in fitted.items():
        for half, key in (("A", pair.down), ("B", pair.up)):
            state[f"base_model.model.{module}.lora_{half}.weight"] = lora.weights.read(key)
    write_json(folder / CONFIG_FILE, fields)
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def exactly(module: str) -> str:
    """A pattern that matches one module only."""
    return "^" + module.replace(".", r"\.")
