"""Formats are found by contents, whatever the folder is called; what is none says what was seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cases import cases
from safetensors.torch import save_file

import tiny_hf
from retinue.convert.detect import detect
from retinue.core.errors import CheckpointError

MODELS = cases("m3-llava", "llava15-core*", "llava-next-anyres*", "mistral*", having="model")
TRAIN = cases("m3-llava", "train*", having="train.json")


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_full_checkpoints_and_their_towers(case: Path, tmp_path: Path) -> None:
    assert detect(case / "model").format == "llava"
    towers = [path.parent for path in case.glob("openai/*/config.json")]
    assert towers
    assert {detect(tower).format for tower in towers} == {"vision-tower"}
    shutil.copytree(case / "model", tmp_path / "just-a-name")
    assert detect(tmp_path / "just-a-name").format == "llava"


@pytest.mark.parametrize("case", TRAIN, ids=lambda case: case.name)
def test_what_training_leaves_behind(case: Path, tmp_path: Path) -> None:
    names = {path.parent.name: detect(path.parent).format for path in case.glob("*/config.json")}
    assert set(names.values()) == {"causal-lm", "llava-projector", "llava-lora"}
    lora = next(case / name for name, kind in names.items() if kind == "llava-lora")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(lora / name, tmp_path / name)
    assert detect(tmp_path).format == "peft-adapter"


@pytest.mark.parametrize(("kind", "name"), [("llava", "hf-llava"), ("llava_next", "hf-llava-next")])
def test_transformers_folders(tmp_path: Path, kind: str, name: str) -> None:
    tiny_hf.save(kind, tmp_path / "llava_llama")
    assert detect(tmp_path / "llava_llama").format == name


def test_legacy_llava_and_hf_share_a_model_type(tmp_path: Path) -> None:
    """`llava` with nested configs is transformers', with mm_ fields the original's oldest."""
    config = {"model_type": "llava", "hidden_size": 8, "mm_vision_tower": "x/y"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    assert detect(tmp_path).format == "llava"


def test_projector_names_make_a_llava_of_a_plain_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    save_file({"model.mm_projector.weight": torch.ones(8, 8)}, tmp_path / "model.safetensors")
    assert detect(tmp_path).format == "llava"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "files: none"),
        ({"notes.txt": "x", "photo.png": "y"}, "notes.txt, photo.png"),
        ({"config.json": '{"model_type": "resnet"}'}, "'resnet'"),
        ({"config.json": '{"model_type": "llava_llama", "mm_vision_tower": "a"}'}, "llava_llama"),
    ],
)
def test_what_is_no_checkpoint_says_what_was_found(
    tmp_path: Path, files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="no checkpoint") as error:
        detect(tmp_path)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_broken_json_and_absent_folders(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        detect(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        detect(tmp_path / "nothing")
