"""Our cross-attention models as OpenFlamingo's checkpoint.pt: resampler, blocks, embeddings."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.flamingo import CHILD, LANGUAGE, LAYERS, flamingo_keys
from retinue.core.errors import CheckpointError
from retinue.core.files import versions, write_json
from retinue.hub.files import whole_folder
from retinue.model.adapters import adapter_names, base_state
from retinue.model.retinue import Retinue

FILE = "checkpoint.pt"
FLAT = "module.lang_encoder.base_model.model."
"""What the trainer's wrappers put before the language model's names."""


def flamingo_state(model: Retinue, *, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Released format: flat names without wrappers -> tensors. names: ours to be written.

    By default the resampler, the gated blocks and the word embeddings, as releases hold them.
    Raises CheckpointError for a model of another shape, or with adapters.
    """
    spec, kind = model.plan.spec, model.config.get_text_config().model_type
    if spec.fusion.kind != "cross" or spec.connector.kind != "perceiver" or kind not in LAYERS:
        raise CheckpointError(
            f"fusion {spec.fusion.kind!r}, connector {spec.connector.kind!r}, on a {kind}",
            where="export to flamingo",
            rule=f"the format has a perceiver and cross-attention on {', '.join(sorted(LAYERS))}",
            fix="keep it as retinue",
        )
    if adapter_names(model) and names is None:
        raise CheckpointError(
            "adapters on the model", where="export to flamingo", fix="merge them first"
        )
    embed: Any = model.lm
    table = f"lm.{embed.embed_name}.weight"
    keys, found = flamingo_keys(kind), {}
    for name, tensor in base_state(model).items():
        usual = name.startswith("connector.") or f".{CHILD}." in name or name == table
        if usual if names is None else name in names:
            theirs = keys.from_retinue(name)
            assert theirs is not None
            found[theirs] = tensor.detach().contiguous()
    return found


def trainer_state(model: Retinue, *, epoch: int = 0) -> dict[str, Any]:
    """What the original's trainer saves: trainable parameters under its wrappers' names.

    Factors of adapters among them; its embeddings too, where their name says so.
    """
    kind = model.config.get_text_config().model_type
    keys, adapted = flamingo_keys(kind), bool(adapter_names(model))
    state = {}
    for name, parameter in model.named_parameters():
        plain, mark, half = name.replace(".base_layer.", ".").partition(".lora_")
        theirs = keys.from_retinue(f"{plain}.weight" if mark else plain)
        if theirs is None or not (parameter.requires_grad or "embed" in theirs):
            continue
        theirs = f"{theirs.removesuffix('.weight')}{mark}{half}" if mark else theirs
        state[wrapped(theirs, layers=LAYERS[kind], adapted=adapted)] = parameter.detach()
    return {"epoch": epoch, "model_state_dict": state}


def wrapped(name: str, *, layers: str, adapted: bool) -> str:
    """A released name as the trainer's wrappers spell it."""
    own = f"{LANGUAGE}{layers}."
    if name.startswith(own) and f".{CHILD}." not in name:
        number, _, rest = name.removeprefix(own).partition(".")
        name = f"{own}{number}.decoder_layer.{rest}"
    if adapted and name.startswith(LANGUAGE):
        return FLAT + name.removeprefix(LANGUAGE)
    return f"module.{name}"


def export_flamingo(model: Retinue, folder: str | Path) -> Path:
    """Write checkpoint.pt into a folder of its own. Raises CheckpointError, EnvError."""
    write_state(flamingo_state(model), folder)
    return Path(folder)


def write_state(state: dict[str, Tensor], folder: str | Path) -> None:
    """checkpoint.pt in a folder of its own."""
    with whole_folder(Path(folder)) as partial:
        torch.save(state, partial / FILE)
        write_json(partial / "provenance.json", {"format": "flamingo", "versions": versions()})
