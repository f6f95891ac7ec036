"""A model from parts: what is loaded keeps its weights, what is new follows the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases

from retinue.convert.detect import detect
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError, ConfigError
from retinue.hub.build import build
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.text.train import train_bpe
from tiny import tiny_model

CASES = cases("m3-llava", "train*", having="train.json")
TAKE = {"kind": "take", "encoder": "clip", "layer": -2}
MLP = {"kind": "mlp", "depth": 2, "of": TAKE}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 40}
LLAMA |= {"num_hidden_layers": 2, "num_attention_heads": 2}
EYE = {"hidden_size": 32, "image_size": 32, "num_attention_heads": 2, "intermediate_size": 40}
PATCHES = {
    "lm": {"config": LLAMA},
    "encoders": {"eye": {"kind": "patches", "config": EYE}},
    "connector": {"kind": "linear", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
}


def parts(case: Path) -> tuple[str, str]:
    """(language model, tower) of a case."""
    folders = [path.parent for path in case.glob("**/config.json")]
    kinds = {detect(folder).format: str(folder) for folder in folders}
    return kinds["causal-lm"], kinds["vision-tower"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_from_two_folders(case: Path, tmp_path: Path) -> None:
    lm, tower = parts(case)
    section = {
        "lm": {"from": lm},
        "encoders": {"clip": {"kind": "clip", "from": tower}},
        "connector": MLP,
        "views": {"kind": "single"},
        "template": "plain",
        "labels": "llava-plain",
        "max_tokens": 99,
    }
    report = build(section, tmp_path / "new")
    assert set(report.groups) == {"lm", "encoders.clip", "connector"}
    assert report.groups["lm"].loaded
    assert report.groups["connector"].new
    assert not report.groups["connector"].loaded
    assert "connector" in str(report)
    state = report.model.state_dict()
    weights = Weights.of(Path(lm))
    assert all(torch.equal(state[f"lm.{name}"], weights.read(name)) for name in weights)
    assert len({tensor.dtype for name, tensor in state.items() if name[:3] == "lm."}) == 1
    again, processor = load(tmp_path / "new")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in state.items())
    assert processor.spec == report.processor.spec
    assert (processor.spec.labels, processor.spec.max_tokens) == ("llava-plain", 99)
    other = build({"from": str(tmp_path / "new"), "template": "v1", "views": {"kind": "pad"}})
    assert other.processor.template.name == "v1"
    assert other.processor.spec.views.kind == "pad"
    assert other.groups["connector"].loaded


def test_from_configs_alone_follows_the_seed(tmp_path: Path) -> None:
    tokenizer = train_bpe(["hello"] * 3, vocab_size=300, specials=["<image>"])
    first, second, third = (
        build({**PATCHES, "seed": seed}, tokenizer=tokenizer).model.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["connector.net.weight"], third["connector.net.weight"])
    report = build({**PATCHES, "dtype": "bf16"}, tmp_path / "m", tokenizer=tokenizer)
    assert {p.dtype for p in report.model.parameters()} == {torch.bfloat16}
    assert report.model.config.text_config.vocab_size == tokenizer.vocab_size
    assert report.processor.image_id == tokenizer.id_of("<image>")
    again, _ = load(tmp_path / "m")
    assert torch.equal(again.connector.net.weight, report.model.connector.net.weight)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_new_encoder_and_layout_beside_a_loaded_language_model(case: Path) -> None:
    lm, _ = parts(case)
    section: dict[str, Any] = {**PATCHES, "lm": {"path": lm}, "layout": {"kind": "newline"}}
    section["views"] = {"kind": "anyres", "pinpoints": [[32, 64], [64, 64]]}
    first, second = build(section).model, build(section).model
    for name, tensor in first.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert first.layout.newline.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connector": None}, "all of lm, encoders and connector"),
        ({"conector": {}}, "did you mean 'connector'"),
        ({"lm": {"config": {"model_type": "resnet"}}}, "no causal language model"),
        ({"lm": {}}, "one of from and config"),
        ({"lm": {"config": {**LLAMA, "vocab_size": 5}}}, "leave vocab_size out"),
        ({"connector": {"kind": "linear", "of": {**TAKE}}}, "clip"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_sections_that_cannot_be(change: dict[str, Any], said: str) -> None:
    tokenizer = train_bpe(["hello"] * 3, vocab_size=300)
    with pytest.raises(ConfigError, match=said):
        build({**PATCHES, **change}, tokenizer=tokenizer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parts_in_the_wrong_place(case: Path) -> None:
    lm, tower = parts(case)
    encoders = {"clip": {"from": tower}}
    with pytest.raises(CheckpointError, match="vision-tower, not a language model"):
        build({"lm": {"from": tower}, "encoders": encoders, "connector": MLP})
    with pytest.raises(CheckpointError, match="no vision tower but causal-lm"):
        build({"lm": {"from": lm}, "encoders": {"clip": {"from": lm}}, "connector": MLP})
    kinds = {"clip": {"from": tower, "kind": "siglip"}}
    with pytest.raises(ConfigError, match="is a clip, the recipe says siglip"):
        build({"lm": {"from": lm}, "encoders": kinds, "connector": MLP})


def test_the_language_model_of_our_own_model(tmp_path: Path) -> None:
    """Its weights go on, its experts start as their copies, everything else is new."""
    old, processor = tiny_model(seed=3)
    save(old, processor, tmp_path / "old")
    eye = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1}
    section = {
        "lm": {"from": str(tmp_path / "old")},
        "encoders": {"eye": {"kind": "patches", "config": eye}},
        "connector": {"kind": "linear", "of": {"kind": "take", "encoder": "eye", "layer": -1}},
        "fusion": {"kind": "expert"},
        "views": {"kind": "squash"},
        "template": {"name": "vicuna_v1", "system": ""},
    }
    report = build(section, tmp_path / "new")
    assert report.groups["encoders.eye"].new > 0
    new, words = load(tmp_path / "new")
    assert words.tokenizer.vocab_size == processor.tokenizer.vocab_size
    state, held = new.state_dict(), 0
    for name, tensor in old.state_dict().items():
        if name.startswith("lm."):
            held += 1
            assert torch.equal(state[name], tensor), name
    assert held > 10
    twin = state["lm.model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(state["lm.model.layers.1.visual_mlp.down_proj.weight"], twin)


def test_a_language_model_that_is_not_whole(tmp_path: Path) -> None:
    old, processor = tiny_model()
    save(old, processor, tmp_path / "old")
    (tmp_path / "old" / "base.json").write_text('{"base": "elsewhere"}', "utf-8")
    section = {
        "lm": {"from": str(tmp_path / "old")},
        "encoders": {"eye": {"kind": "patches", "config": {"image_size": 32}}},
        "connector": {"kind": "linear", "of": {"kind": "take", "encoder": "eye"}},
    }
    with pytest.raises(CheckpointError, match="only what was trained on another model"):
        build(section)


@pytest.mark.parametrize("place", ["quickstart/data/tokenizer", "worlds/text/tokenizer"])
def test_a_tokenizer_that_is_not_made_yet(place: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run `retinue quickstart` first"):
        build({**PATCHES, "tokenizer": {"from": place}})
