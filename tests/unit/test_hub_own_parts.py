"""A new model from parts of our own ones: the language model of one, the encoder of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from retinue.core.errors import CheckpointError, ConfigError
from retinue.hub.build import build
from retinue.hub.save import save
from tiny import tiny_model


def section(words: Path, eye: Path, *, name: str = "eye", **encoder: Any) -> dict[str, Any]:
    return {
        "lm": {"from": str(words)},
        "encoders": {name: {"from": str(eye), **encoder}},
        "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": name, "layer": -1}},
        "views": {"kind": "squash"},
    }


def test_encoder_and_language_model_come_from_two_models(tmp_path: Path) -> None:
    one, other = tiny_model(seed=1), tiny_model(seed=2)
    save(*one, tmp_path / "one")
    save(*other, tmp_path / "other")
    built = build(section(tmp_path / "one", tmp_path / "other"))
    state = built.model.state_dict()
    for part, source in (("lm.", one[0]), ("encoders.", other[0])):
        own = {key: value for key, value in source.state_dict().items() if key.startswith(part)}
        assert own
        for key, value in own.items():
            assert torch.equal(state[key], value), key


def test_an_encoder_that_is_not_there(tmp_path: Path) -> None:
    save(*tiny_model(), tmp_path / "one")
    with pytest.raises(CheckpointError, match="no encoder 'ear'"):
        build(section(tmp_path / "one", tmp_path / "one", name="ear"))
    with pytest.raises(ConfigError, match="has a patches, the recipe says clip"):
        build(section(tmp_path / "one", tmp_path / "one", kind="clip"))
