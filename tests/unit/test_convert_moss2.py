"""LLaVA-MOSS2 folders in, and out again as the original reads them, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases
from safetensors.torch import save_file
from torch import Tensor

from retinue.convert.detect import detect
from retinue.convert.internlm import language_fields, language_rules, language_weights
from retinue.convert.weights import Weights, load_pickle
from retinue.core.errors import CheckpointError, ConfigError
from retinue.hub.convert import convert
from retinue.hub.load import load, load_with_report
from retinue.model.lm.fused import unlike

CASES = cases("llava-moss2", "*infer*", having="outputs.json")
TRAINED = cases("llava-moss2", "*train*", having="training_log.json")
ids = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
TOWER = ".vision_tower."


def bench(case: Path, tmp_path: Path) -> Path:
    """A copy of the case's folders to work in; returns the model's."""
    for config in case.glob("*/config.json"):
        shutil.copytree(config.parent, tmp_path / config.parent.name)
    (found,) = [f.parent for f in tmp_path.glob("*/config.json") if "moss2" in f.read_text()]
    return found


def tensors(folder: Path) -> dict[str, Tensor]:
    weights = Weights.of(folder)
    return {name: weights.read(name) for name in weights}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@ids
@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_every_bit_comes_back(case: Path, tmp_path: Path, files: Any) -> None:
    source = bench(case, tmp_path)
    out = tmp_path / "out"
    report = convert(source, out, to="llava_moss2", files=files, shard_bytes=100_000)
    assert len(list(out.glob("*.bin"))) == (len(list(out.glob("pytorch_model*"))) - 1) * (
        files == "bin"
    )
    same(tensors(source), tensors(out))
    assert set(report.written) == set(tensors(out))
    assert config_of(out) == config_of(source) | {"architectures": ["LlavaMoss2ForCausalLM"]} | {
        key: config_of(out)[key] for key in ("torch_dtype",)
    }


@ids
def test_through_our_own_format(case: Path, tmp_path: Path) -> None:
    """The tower was never trained, so it stays where it was; all else has its bits."""
    source = bench(case, tmp_path)
    convert(source, tmp_path / "ours", to="retinue")
    convert(tmp_path / "ours", tmp_path / "out", to="llava_moss2", files="bin")
    wanted = {name: value for name, value in tensors(source).items() if TOWER not in name}
    same(wanted, tensors(tmp_path / "out"))
    a, processor = load(source, dtype=torch.float32)
    b, again = load(tmp_path / "out", dtype=torch.float32)
    same(dict(a.state_dict()), dict(b.state_dict()))
    assert again.spec == processor.spec
    convert(tmp_path / "ours", tmp_path / "full", to="llava_moss2", tower="include")
    assert set(tensors(tmp_path / "full")) == set(tensors(source))


@ids
def test_language_model_alone(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    out = tmp_path / "lm"
    convert(source, out, to="moss2", files="bin")
    wanted = {
        name: value
        for name, value in tensors(source).items()
        if TOWER not in name and ".mm_projector." not in name
    }
    same(wanted, tensors(out))
    assert detect(out).format == "causal-lm"
    config, before = config_of(out), config_of(source)
    assert config["model_type"] == "Moss2"
    for name in ("bias", "hidden_size", "num_key_value_heads", "rope_theta", "rope_scaling"):
        assert config[name] == before[name], name
    with pytest.raises(CheckpointError, match="retinue build"):
        load(out)


@ids
def test_as_plain_llava(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    convert(source, tmp_path / "llama", to="llava")
    a, _ = load(source, dtype=torch.float32)
    b, _ = load(tmp_path / "llama", dtype=torch.float32, template="llava_llama_2")
    assert config_of(tmp_path / "llama")["model_type"] == "llava_llama"
    lm = {name: value for name, value in a.state_dict().items() if name.startswith("lm.")}
    same(lm, {name: value for name, value in b.state_dict().items() if name in lm})


@ids
def test_projector_file_and_bare_weights(case: Path, tmp_path: Path) -> None:
    """What the original's stages leave: weights without config, tokenizer or language model."""
    source = bench(case, tmp_path)
    whole, _ = load(source)
    projector = tmp_path / "projector"
    convert(source, projector, to="llava_moss2", files="projector")
    kept = load_pickle(projector / "mm_projector.bin")
    assert set(kept) == {name for name in tensors(source) if ".mm_projector." in name}
    base = tmp_path / "base"  # the language model with the config of the whole, before any stage
    convert(source, base, to="moss2")
    shutil.copy(source / "config.json", base / "config.json")
    assert detect(base).format == "causal-lm"
    for name in ("config.json", "generation_config.json", "provenance.json"):
        (projector / name).unlink(missing_ok=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(source / "pytorch_model.bin", bare)
    for folder in (projector, bare):
        with pytest.raises(CheckpointError, match="base"):
            load(folder)
        again, _ = load(folder, base=base)
        same(dict(whole.state_dict()), dict(again.state_dict()))


@ids
def test_a_projector_beside_the_weights_wins(case: Path, tmp_path: Path) -> None:
    source = bench(case, tmp_path)
    convert(source, tmp_path / "alone", to="llava_moss2", files="projector")
    changed = {
        name: value + 1
        for name, value in load_pickle(tmp_path / "alone" / "mm_projector.bin").items()
    }
    torch.save(changed, source / "mm_projector.bin")
    model, _ = load(source)
    for name, value in changed.items():
        ours = name.replace("model.mm_projector", "connector.net")
        assert torch.equal(model.state_dict()[ours], value)


@ids
def test_the_weights_tell_the_projector(case: Path, tmp_path: Path) -> None:
    """The original writes `linear` into the config of an MLP."""
    source = bench(case, tmp_path)
    depth = config_of(source)["mm_projector_type"]
    (source / "config.json").write_text(
        json.dumps(config_of(source) | {"mm_projector_type": "linear"})
    )
    convert(source, tmp_path / "out", to="llava_moss2")
    assert config_of(tmp_path / "out")["mm_projector_type"] == depth


@ids
def test_sticky_rope_is_kept_when_asked(case: Path) -> None:
    (folder,) = [f.parent for f in case.glob("*/config.json") if "moss2" in f.read_text()]
    own, sticky = load(folder)[0], load(folder, rope="sticky")[0]
    assert (own.plan.spec.rope, sticky.plan.spec.rope) == ("sequence", "sticky")
    assert (unlike(own), unlike(sticky)) == (None, "rope StickyRope")
    with pytest.raises(ConfigError, match="sticky"):
        load(folder, rope="stiky")


def test_bin_files_belong_to_the_originals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only hf-pair, llava, llava_moss2, moss2 have"):
        convert(tmp_path, tmp_path / "out", to="hf", files="bin")


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_a_chat_checkpoint_is_a_language_model(case: Path) -> None:
    """Its config already speaks of a projector, which the weights do not hold."""
    for folder in (f.parent for f in case.glob("*/config.json") if "moss2" in f.read_text()):
        assert detect(folder).format == "causal-lm"


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    config = {"model_type": "internlm2", "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(
        {"model.layers.0.attention.wqkv.weight": torch.ones(9, 8)}, tmp_path / "model.safetensors"
    )
    found = detect(tmp_path)
    weights = language_weights(found.weights, found.config)
    with pytest.raises(CheckpointError, match="9 rows"):
        weights.read("model.layers.0.attention.wqkv[q].weight")


def test_internlm1(tmp_path: Path) -> None:
    """Llama's names with biases, and a rope stated in another field."""
    config = {"model_type": "internlm", "bias": True, "hidden_size": 16, "num_attention_heads": 2}
    plain = language_fields(config, where="x")
    assert plain["attention_bias"]
    assert plain["rope_parameters"]["rope_type"] == "dynamic"
    asked = {**config, "rotary": {"type": "origin", "base": 5000}}
    assert language_fields(asked, where="x")["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 5000.0,
    }
    (rule,) = language_rules(config)
    name = "model.layers.0.self_attn.q_proj.bias"
    assert rule.forward(name) == f"lm.{name}"
    with pytest.raises(CheckpointError, match="rope_scaling"):
        language_fields(
            {"model_type": "internlm2", "rope_scaling": {"type": "yarn", "factor": 2}}, where="x"
        )


@ids
def test_report_names_the_towers_origin(case: Path) -> None:
    (folder,) = [f.parent for f in case.glob("*/config.json") if "moss2" in f.read_text()]
    labels = [source.label for source in load_with_report(folder).opened.sources]
    assert any("tower" in label for label in labels)
