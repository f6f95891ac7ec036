"""M3 checkpoints in and out: told by their config, pooled, written back as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases

from retinue.convert.detect import detect
from retinue.convert.nested import SCALES
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.hub.convert import convert
from retinue.hub.elastic import make_elastic
from retinue.hub.load import load
from retinue.hub.save import save

OURS = {"template": "vicuna_v1"}
FLAT = cases("m3-llava", "llava15-core*", having="model")[:1]
TILED = cases("m3-llava", "llava-next-anyres*", having="model")[:1]
both = pytest.mark.parametrize("case", [*FLAT, *TILED], ids=lambda case: case.name)


def bench(case: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of a case's model and towers, its config changed; returns the model's folder."""
    for folder in ("model", "openai"):
        shutil.copytree(case / folder, tmp_path / folder)
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return tmp_path / "model"


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@both
def test_scales_in_the_config_make_an_elastic_model_and_go_back(case: Path, tmp_path: Path) -> None:
    """LLaVA-1.5-M3 and LLaVA-NeXT-M3: the same weights as their LLaVA, one more field."""
    plain, _ = load(case / "model", **OURS)
    known = sorted({1, plain.plan.per_view().length})
    source = bench(case, tmp_path, **{SCALES: known})
    assert detect(source).format == "llava"
    model, _ = load(source, **OURS)
    assert (model.plan.spec.connector.kind, model.plan.budgets) == ("elastic", known)
    assert model.plan.spec.budget is None
    for name, tensor in plain.state_dict().items():
        ours = name.replace("connector.", "connector.of.")
        assert torch.equal(model.state_dict()[ours], tensor), name
    there = convert(source, tmp_path / "own", to="retinue", **OURS)
    assert there.coverage.complete
    convert(tmp_path / "own", tmp_path / "back", to="llava")
    assert config_of(tmp_path / "back") == config_of(source)
    old, new = Weights.of(source), Weights.of(tmp_path / "back")
    assert set(old) == set(new)
    assert all(torch.equal(old.read(name), new.read(name)) for name in old)


@both
@pytest.mark.parametrize("said", [None, []])
def test_no_scales_is_a_plain_llava(case: Path, tmp_path: Path, said: Any) -> None:
    source = bench(case, tmp_path, **{SCALES: said})
    model, _ = load(source, **OURS)
    assert not model.plan.spec.connector.elastic
    convert(source, tmp_path / "back", to="llava", **OURS)
    assert not config_of(tmp_path / "back")[SCALES]


@both
def test_a_llava_made_elastic_is_written_as_m3(case: Path, tmp_path: Path) -> None:
    model, processor = load(case / "model", **OURS)
    make_elastic(model, processor, budget=1)
    save(model, processor, tmp_path / "own")
    report = convert(tmp_path / "own", tmp_path / "m3", to="llava", tower="include")
    assert any("default budget of 1 is not kept" in note for note in report.notes)
    assert config_of(tmp_path / "m3")[SCALES] == model.plan.budgets
    tower = next(path.parent for path in case.glob("openai/*/config.json"))
    again, _ = load(tmp_path / "m3", encoders={"clip": tower}, **OURS)
    assert again.plan.budgets == model.plan.budgets
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@both
def test_transformers_gets_the_full_model_or_a_refusal(case: Path, tmp_path: Path) -> None:
    full = load(case / "model", **OURS)[0].plan.per_view().length
    source = bench(case, tmp_path, **{SCALES: [1, full]})
    report = convert(source, tmp_path / "hf", to="hf", **OURS)
    assert any(f"always uses all {full} tokens" in note for note in report.notes)
    model, processor = load(source, **OURS)
    there, _ = load(tmp_path / "hf")
    for name, tensor in model.state_dict().items():
        other = there.state_dict()[name.replace("connector.of.", "connector.")]
        assert torch.equal(other[: len(tensor)] if other.ndim else other, tensor), name
    make_elastic(model, processor, budget=1)
    save(model, processor, tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"answers with 1 visual tokens.*always use all"):
        convert(tmp_path / "own", tmp_path / "none", to="hf")
    assert not (tmp_path / "none").exists()


def test_pooling_before_the_projector_is_no_m3(tmp_path: Path) -> None:
    (case,) = FLAT
    model, processor = load(case / "model", **OURS)
    tree = model.config.spec["connector"]
    model.config.spec["connector"] = {**tree, "of": {"kind": "elastic", "of": tree["of"]}}
    changed = type(model)(model.config)
    save(changed, processor, tmp_path / "own")
    for to in ("llava", "hf"):
        with pytest.raises(CheckpointError, match="connector 'mlp'"):
            convert(tmp_path / "own", tmp_path / to, to=to)  # type: ignore[arg-type]


def test_scales_as_text_and_scales_that_are_rounded(tmp_path: Path) -> None:
    """The original writes a list; its command line has text, and it rounds whatever it is given."""
    (case,) = FLAT
    full = load(case / "model", **OURS)[0].plan.per_view().length
    source = bench(case, tmp_path, **{SCALES: f"1,{full}"})
    assert load(source, **OURS)[0].plan.budgets == [1, full]
    convert(source, tmp_path / "back", to="llava", **OURS)
    assert config_of(tmp_path / "back")[SCALES] == f"1,{full}"
    for said, rounding in (([1, full - 1], "original"), ([1, full], "exact")):
        file = source / "config.json"
        file.write_text(json.dumps({**config_of(source), SCALES: said}))
        assert load(source, **OURS)[0].config.spec["connector"]["rounding"] == rounding


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ([0], "positive"),
        (["x"], "positive"),
        ("many", "positive"),
        (10**6, "positive"),
        ([10**6], "budget of 1000000"),
    ],
)
def test_scales_that_cannot_be(tmp_path: Path, said: Any, rule: str) -> None:
    source = bench(FLAT[0], tmp_path, **{SCALES: said})
    with pytest.raises(CheckpointError, match=rule):
        load(source, **OURS)


@pytest.mark.parametrize("kind", ["llava-projector", "llava-lora"])
@pytest.mark.parametrize("keep", [False, True])
def test_incomplete_checkpoints_with_scales(tmp_path: Path, kind: str, keep: bool) -> None:
    """A projector or a LoRA of M3 gives the weights that it gives without scales."""
    (case,) = cases("m3-llava", "train*", having="load_outputs.safetensors")[:1]
    shutil.copytree(case, tmp_path / "case")
    folders = [path.parent for path in sorted((tmp_path / "case").glob("*/config.json"))]
    found = {detect(folder).format: folder for folder in folders}
    options: dict[str, Any] = {"base": found["causal-lm"], "keep_adapter": keep, **OURS}
    plain, processor = load(found[kind], **options)
    make_elastic(plain, processor)
    file = found[kind] / "config.json"
    file.write_text(json.dumps({**config_of(found[kind]), SCALES: plain.plan.budgets}))
    model, _ = load(found[kind], **options)
    assert model.plan.budgets == plain.plan.budgets
    wanted = plain.state_dict()
    assert set(model.state_dict()) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
