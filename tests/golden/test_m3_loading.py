"""What the original's loader makes of incomplete checkpoints: projector only, LoRA, merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from PIL import Image
from safetensors.torch import load_file

from retinue.convert.detect import detect
from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.model.adapters import adapter_names
from retinue.types import Batch

CASES = cases("m3-llava", "train*", having="load_outputs.safetensors")
TOLERANCE = {"atol": 2e-4, "rtol": 0}  # the case's README; loading alone agrees to 1e-6


def folder_of(case: Path, format: str) -> Path:
    """The one folder of a case that has this format."""
    found = [p.parent for p in case.glob("*/config.json") if detect(p.parent).format == format]
    assert len(found) == 1
    return found[0]


def batch_of(case: Path, processor: Any, info: dict[str, Any]) -> Batch:
    """The prompt of the loader's run with the case's first picture; ids compared on the way."""
    image = Image.open(sorted((case / "data/images").iterdir())[0])
    example = processor.prompt_example("golden", info["prompt"], [image])
    pad = processor.image_id
    before = [None, *example.tokens[:-1]]
    single = [
        id for id, last in zip(example.tokens, before, strict=True) if (id, last) != (pad, pad)
    ]
    assert single == info["input_ids"]
    batch: Batch = processor.collate([example])
    return batch


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("format", "name", "keep"),
    [
        ("llava-projector", "projector_only", False),
        ("llava-lora", "lora", False),
        ("llava-lora", "lora", True),
    ],
)
def test_incomplete_checkpoints(case: Path, format: str, name: str, keep: bool) -> None:
    info = json.loads((case / "train.json").read_text())["load"][name]
    wanted = load_file(case / "load_outputs.safetensors")
    model, processor = load(
        folder_of(case, format),
        base=folder_of(case, "causal-lm"),
        dtype=torch.float32,
        keep_adapter=keep,
    )
    assert bool(adapter_names(model)) == keep
    with torch.no_grad():
        logits = model.run(batch_of(case, processor, info)).logits
    assert logits is not None
    expected = wanted[f"{name}.logits_last6"]
    torch.testing.assert_close(logits[0, -len(expected) :], expected, **TOLERANCE)
    if name == "lora" and not keep:
        state = model.state_dict()
        for key, value in wanted.items():
            if key.startswith("merged."):
                ours = key.removeprefix("merged.model.").replace("mm_projector", "connector.net")
                ours = ours if ours.startswith("connector") else f"lm.model.{ours}"
                torch.testing.assert_close(state[ours], value, atol=1e-6, rtol=0)
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merged_and_saved_as_llava_gives_the_same(case: Path, tmp_path: Path) -> None:
    info = json.loads((case / "train.json").read_text())["load"]
    expected = load_file(case / "load_outputs.safetensors")["merged_reloaded.logits_last6"]
    base = folder_of(case, "causal-lm")
    source = folder_of(case, "llava-lora")
    convert(source, tmp_path / "a/b", to="llava", base=base, tower="include", dtype=torch.float32)
    assert len(Weights.of(tmp_path / "a/b")) == info["merged_keys"]
    tower = next(case.glob("*/*/preprocessor_config.json")).parent
    model, processor = load(tmp_path / "a/b", encoders={"clip": tower})
    with torch.no_grad():
        logits = model.run(batch_of(case, processor, info["lora"])).logits
    assert logits is not None
    torch.testing.assert_close(logits[0, -len(expected) :], expected, **TOLERANCE)
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lora_without_its_base_is_refused(case: Path, tmp_path: Path) -> None:
    source = folder_of(case, "llava-lora")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"llava-lora, which needs .* base=PATH"):
        load(tmp_path)
