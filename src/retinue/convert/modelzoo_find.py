"""Where ModelZoo's checkpoints and configs lie in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue.convert.mdl import MdlWeights
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.yamlio import load_yaml

PAIR = ("image_model", "text_model")


def is_pair(folder: Path) -> bool:
    """Whether a folder holds the two HF folders that ModelZoo's converter reads and writes."""
    return all((folder / name / "config.json").exists() for name in PAIR)


def find_modelzoo(folder: Path) -> tuple[dict[str, Any], Weights] | None:
    """(config, weights) of a folder with a checkpoint and its YAML, None where it is none.

    Of several checkpoints the one of most steps counts. Raises CheckpointError for a checkpoint
    whose YAML is missing.
    """
    if (folder / "config.json").exists():
        return None
    configs = [data for data in map(_read, sorted(folder.glob("*.y*ml"))) if model_section(data)]
    files = sorted(folder.glob("*.mdl"), key=_steps)
    weights: Weights = MdlWeights(files[-1:]) if files else Weights.of(folder)
    if configs and weights.files:
        return configs[-1], weights
    if files:
        raise CheckpointError(
            f"{files[-1].name} without the YAML of its model",
            where=str(folder),
            rule="a ModelZoo checkpoint is described by the params file it was made with",
            fix="copy that file beside it",
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        data, _ = load_yaml(path)
    except ConfigError:
        return {}
    return dict(data) if isinstance(data, Mapping) else {}


def _steps(path: Path) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if path.stem.startswith("checkpoint") and numbers else -1, path.name


def model_section(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `model` section of a params file of either layout, None if it has none like ours."""
    trainer = data.get("trainer")
    if isinstance(trainer, list) and trainer:
        trainer = trainer[0].get("trainer", trainer[0]) if isinstance(trainer[0], Mapping) else None
    places = [data.get("model")]
    if isinstance(trainer, Mapping):
        places.append((trainer.get("init") or {}).get("model"))
    for place in places:
        if isinstance(place, Mapping) and "image_model_list" in place:
            return dict(place)
    return None
