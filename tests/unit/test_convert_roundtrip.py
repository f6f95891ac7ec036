"""LLaVA -> retinue -> LLaVA keeps every bit of weights and every field of the config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases
from safetensors.torch import save_file

from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.save import save

CASES = cases(
    "m3-llava", "llava15-core*", "llava-next-anyres*", "mistral*", "m3-scales*", having="model"
)
ids = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
OURS = {"template": "vicuna_v1"}


def bench(case: Path, tmp_path: Path) -> Path:
    """A copy of a case's model and towers to work in; returns the model's folder."""
    for folder in ("model", "openai"):
        shutil.copytree(case / folder, tmp_path / folder)
    return tmp_path / "model"


def same_tensors(left: Path, right: Path) -> None:
    a, b = Weights.of(left), Weights.of(right)
    assert set(a) == set(b)
    for name in a:
        assert a.read(name).dtype == b.read(name).dtype
        assert torch.equal(a.read(name), b.read(name)), name


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@ids
def test_there_and_back(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    there = convert(source, tmp_path / "own", to="retinue", **OURS)
    assert there.coverage.complete
    assert "unused" in str(there)
    back = convert(tmp_path / "own", tmp_path / "back", to="llava")
    assert back.source == "retinue"
    same_tensors(source, tmp_path / "back")
    assert config_of(source) == config_of(tmp_path / "back")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


@ids
def test_a_loaded_and_saved_model_goes_back_too(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    model, processor = load(source, **OURS)
    save(model, processor, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", to="llava")
    same_tensors(source, tmp_path / "back")


@ids
def test_a_changed_tower_goes_into_the_checkpoint(case: Path, tmp_path: Path) -> None:
    model, processor = load(bench(case, tmp_path), **OURS)
    with torch.no_grad():
        next(model.encoders["clip"].parameters()).add_(1)
    save(model, processor, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", to="llava")
    assert config_of(tmp_path / "back")["unfreeze_mm_vision_tower"] or "unfreeze" in str(
        config_of(tmp_path / "model")
    )
    again, _ = load(tmp_path / "back", **OURS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@ids
def test_tower_choice(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    convert(source, tmp_path / "with", to="llava", tower="include", **OURS)
    convert(source, tmp_path / "without", to="llava", tower="external", **OURS)
    inside = [name for name in Weights.of(tmp_path / "with") if "vision_tower" in name]
    assert inside
    assert all(".vision_tower.vision_tower.vision_model." in name for name in inside)
    assert not [name for name in Weights.of(tmp_path / "without") if "vision_tower" in name]


@ids
def test_tower_keys_without_vision_model_win_over_the_folder(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    convert(source, tmp_path / "with", to="llava", tower="include", **OURS)
    weights = Weights.of(tmp_path / "with")
    state = {n.replace("vision_model.", ""): weights.read(n).contiguous() for n in weights}
    name = "model.vision_tower.vision_tower.embeddings.class_embedding"
    state[name] = state[name] + 1
    save_file(state, tmp_path / "with/model.safetensors", metadata={"format": "pt"})
    model, _ = load(tmp_path / "with", **OURS)
    found = model.state_dict()["encoders.clip.net.embeddings.class_embedding"]
    assert torch.equal(found, state[name])


@ids
def test_a_model_without_history_is_described_from_its_specs(case: Path, tmp_path: Path) -> None:
    """The exported folder stands alone: it carries the tower's sizes and weights."""
    model, processor = load(bench(case, tmp_path), **OURS)
    del model.config.foreign
    save(model, processor, tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "alone", to="llava")
    shutil.rmtree(tmp_path / "openai")
    old, new = config_of(case / "model"), config_of(tmp_path / "alone")
    assert new["mm_vision_tower"] == "vision_tower"
    says = ("mm_", "image_", "rope_theta", "model_type", "hidden", "num_", "rms_", "architectures")
    for key, value in old.items():
        if key.startswith(says) and key != "mm_vision_tower" and not key.endswith("_lr"):
            assert new[key] == value, key
    again, other = load(tmp_path / "alone", **OURS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert other.spec == processor.spec.model_copy(
        update={"template": other.spec.template, "views": other.spec.views}
    )


@ids
def test_a_tower_that_is_nowhere_is_named(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    config = config_of(source)
    config["mm_vision_tower"] = "./towers/none"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"towers/none.*--encoder clip=PATH"):
        load(source)
    tower = next(path.parent for path in case.glob("openai/*/config.json"))
    model, _ = load(source, encoders={"clip": tower})
    wanted, _ = load(case / "model")
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    with pytest.raises(CheckpointError, match="no encoder siglip"):
        load(source, encoders={"siglip": tower})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mm_projector_type": "mlp2x_relu"}, "mlp2x_relu"),
        ({"mm_vision_select_feature": "cls"}, "patch, cls_patch"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer"),
        ({"mm_patch_merge_type": "maxpool"}, "maxpool"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": "[[1,"}, "pinpoints"),
        ({"model_type": "llava_mpt"}, "MPT"),
    ],
)
def test_what_the_original_does_not_have(tmp_path: Path, change: Any, said: str) -> None:
    source = bench(CASES[0], tmp_path)
    config = {**config_of(source), **change}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        load(source)
