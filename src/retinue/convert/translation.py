"""What a foreign folder means in our terms: config, processor settings, key rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.convert.keymap import KeyMap
from retinue.convert.weights import Weights
from retinue.model.spec import RetinueConfig

FOREIGN = "foreign"
"""Attribute of RetinueConfig: {"format", "config", ...}, so that a way back loses nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """An encoder found for a checkpoint.

    kind: ours; config: of its backbone; weights: its own files, empty where the checkpoint holds
    them; preprocessor: its preprocessor_config.json; source: where it came from, for the report.
    """

    kind: str
    config: Mapping[str, Any]
    weights: Weights
    source: str
    folder: Path | None = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """One foreign model in our terms.

    processor: settings as in processor.json; keys: rules for the model's own weight files;
    notes: lines to print once, such as a default template.
    """

    config: RetinueConfig
    processor: dict[str, Any]
    keys: KeyMap
    notes: list[str] = field(default_factory=list)


def foreign(config: RetinueConfig) -> dict[str, Any]:
    """What was remembered of the format that a model came from; {} for one of our own."""
    found = getattr(config, FOREIGN, None)
    return dict(found) if isinstance(found, Mapping) else {}
