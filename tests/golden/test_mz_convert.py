"""ModelZoo's converter: the pair of HF folders, its checkpoints and ours, in both directions."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cases import cases, compared
from safetensors.torch import load_file
from test_mz_models import SYSTEM, compare_forward

from retinue.convert.detect import detect
from retinue.convert.weights import Weights
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.sources import open_folder
from retinue.hub.stream import fill, skeleton

CASES = cases(SYSTEM, "convert_*")
WHOLE = [case for case in CASES if (case / "cs_state_dict.safetensors").exists()]


def facts_of(case):
    return json.loads((case / "expected.json").read_text("utf-8"))


def release_of(facts):
    (name,) = (n for n in facts["cs_files"] if n.endswith(".yaml"))
    return name.removeprefix("config_to_cs-").removesuffix(".yaml")


def tensors_of(folder):
    weights = detect(folder).weights
    return {name: weights.read(name) for name in weights}


def same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def checkpoint(case, folder):
    """The case's converted checkpoint; of one without container, its state dict and YAML."""
    if any((case / "cs").glob("*.mdl")):
        return case / "cs"
    made = folder / "checkpoint"
    shutil.copytree(case / "cs", made)
    shutil.copy(case / "cs_state_dict.safetensors", made / "model.safetensors")
    return made


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_pair_to_mm_simple_and_back(case, tmp_path):
    facts = facts_of(case)
    out, back = tmp_path / "cs", tmp_path / "back"
    convert(case / "hf", out, to="mm_simple", release=release_of(facts), exact=True)
    assert set(facts["cs_files"]) <= {path.name for path in out.iterdir()}
    (config,) = out.glob("*.yaml")
    assert yaml.safe_load(config.read_text("utf-8")) == facts["cs_config"]
    found, expected = tensors_of(out), load_file(case / "cs_state_dict.safetensors")
    assert {name: list(t.shape) for name, t in found.items()} == facts["cs_keys"]
    source = open_folder(case / "hf")
    if any("new projector" in one.label for one in source.sources):
        drawn = {name for name in expected if name.startswith("image_model.projection.")}
        for name in drawn:
            assert found[name].shape == expected[name].shape
        expected = {k: found[k] if k in drawn else v for k, v in expected.items()}
    same(found, expected)

    convert(checkpoint(case, tmp_path), back, to="hf-pair")
    for part, names in facts["back_files"].items():
        assert set(names) == {path.name for path in (back / part).iterdir()}
        told = facts["round_trip"][part]
        weights = Weights.of(back / part)
        assert {name: list(weights.shape(name)) for name in weights} == told["keys"]
        config = json.loads((back / part / "config.json").read_text("utf-8"))
        wanted = dict(told["config"])
        if "mm_vision_tower" in wanted:
            wanted["mm_vision_tower"] = str(back / "image_model")
        assert config == wanted
        given = Weights.of(case / "hf" / part)
        assert set(given) - set(weights) == set(told["missing_vs_input"])
        assert set(weights) - set(given) == set(told["extra_vs_input"])
        for name in given:
            assert torch.equal(given.read(name), weights.read(name)), name
    pictures = json.loads((back / "image_model" / "preprocessor_config.json").read_text("utf-8"))
    assert pictures == facts["round_trip"]["preprocessor_config"]
    compared(case)


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
@torch.no_grad()
def test_forward_of_converted_weights(case, tmp_path):
    opened = open_folder(checkpoint(case, tmp_path))
    model = skeleton(opened.config)
    fill(model, opened.sources, dtype=torch.float32, device="cpu", where="case")
    outputs = load_file(case / "outputs.safetensors")
    batch = compare_forward(model, load_file(case / "batch.safetensors"), outputs)
    out = model.run(batch)
    loss = (out.loss_sum / out.num_supervised).view(1)
    torch.testing.assert_close(loss, outputs["loss"].view(1), atol=0, rtol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_configs_without_weights(case, tmp_path):
    """The YAML of a pair's configs, and the configs of the pair that the YAML stands for."""
    from retinue.convert.llava import import_llava
    from retinue.convert.modelzoo import import_modelzoo
    from retinue.convert.modelzoo_export import export_modelzoo, pair_configs
    from retinue.convert.towers import vision_config
    from retinue.convert.translation import Tower
    from retinue.hub.modelzoo_out import settings_of
    from retinue.hub.sources import Opened

    facts = facts_of(case)
    image, text = (
        json.loads((case / "hf" / part / "config.json").read_text("utf-8"))
        for part in ("image_model", "text_model")
    )
    file = case / "hf" / "image_model" / "preprocessor_config.json"
    tower = Tower(
        kind="clip",
        config=vision_config(image),
        weights=Weights([]),
        source="case",
        preprocessor=json.loads(file.read_text("utf-8")),
    )
    made = import_llava(text, tower, where="case")
    found = export_modelzoo(made.config, release=release_of(facts), exact=True)
    assert {"model": found} == facts["cs_config"]
    better = export_modelzoo(made.config, release=release_of(facts), exact=False)
    assert better["freeze"][0] == "^image_model.image_model_list"
    back = import_modelzoo(facts["cs_config"]["model"], where="case")
    again = export_modelzoo(back.config, release=release_of(facts), exact=True)
    assert {"model": again} == facts["cs_config"]
    opened = Opened(
        format="mm_simple",
        folder=Path(),
        config=back.config,
        processor=back.processor,
        tokenizer=Path(),
        sources=[],
    )
    tower_name = facts["round_trip"]["text_model"]["config"]["mm_vision_tower"]
    words, towers, pictures = pair_configs(back.config, settings_of(opened), tower=tower_name)
    assert words == facts["round_trip"]["text_model"]["config"]
    assert towers == facts["round_trip"]["image_model"]["config"]
    assert pictures == facts["round_trip"]["preprocessor_config"]
    compared(case)


def test_pair_in_every_format(tmp_path):
    """pair -> retinue -> llava -> mm_simple: the same bits everywhere, a tokenizer on the way."""
    for case in [one for one in WHOLE if any((one / "cs").glob("*.mdl"))][:1]:
        words = case.parent / "tokenizer_hf"
        convert(case / "hf", tmp_path / "own", to="retinue", tokenizer=words)
        convert(tmp_path / "own", tmp_path / "llava", to="llava", tower="include")
        convert(tmp_path / "llava", tmp_path / "cs", to="mm_simple", release="2.5")
        assert any((tmp_path / "cs").glob("tokenizer.*"))
        same(tensors_of(tmp_path / "cs"), load_file(case / "cs_state_dict.safetensors"))
        model, _ = load(tmp_path / "cs")
        assert model.lm.layers
