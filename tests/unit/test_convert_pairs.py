"""`convert --list` tells the truth: every pair is tried on a small model of each source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases
from flamingo import tower
from safetensors.torch import save_file

import tiny_cogvlm
import tiny_hf
from retinue.cli.main import run
from retinue.core.errors import CheckpointError, ConfigError, RetinueError
from retinue.hub.convert import convert
from retinue.hub.targets import TARGETS
from retinue.hub.targets.pairs import LLAVA, PAIRS

Source = tuple[Path, dict[str, Any]]
"""A folder or file, and what else `convert` must be told."""


def hf(folder: Path, kind: str = "llava") -> Source:
    tiny_hf.save(kind, folder / kind)
    return folder / kind, {}


def out_of_hf(to: str) -> Callable[[Path], Source]:
    """A model of transformers' in another format."""

    def make(folder: Path) -> Source:
        convert(hf(folder)[0], folder / to, to=to, tower="include")
        return folder / to, {}

    return make


def trained(name: str) -> Callable[[Path], Source]:
    """What the original's training left."""

    def make(folder: Path) -> Source:
        found = [
            path
            for case in cases("m3-llava", "train*")
            for path in case.iterdir()
            if (path / name).exists() and (name == "adapter_config.json" or not lora(path))
        ]
        return found[0], {}

    return make


def lora(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def adapter(folder: Path) -> Source:
    """A LoRA folder in PEFT's layout beside the model it stands on."""
    convert(hf(folder)[0], folder / "base", to="retinue")
    tuned = folder / "tuned"
    tuned.mkdir()
    name = "base_model.model.lm.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format("A"): torch.ones(2, 32), name.format("B"): torch.ones(32, 2)}
    save_file(factors, tuned / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tuned / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    return tuned, {"base": folder / "base"}


def cogvlm(folder: Path) -> Source:
    tiny_cogvlm.write_public(tiny_cogvlm.make(), folder / "cogvlm")
    return folder / "cogvlm", {}


def sphinx(folder: Path) -> Source:
    return cases("sphinx", "llama_*", having="checkpoint")[0] / "checkpoint", {}


def flamingo(folder: Path) -> Source:
    case = cases("instruct-flamingo", "llama*", having="flamingo.pt")[0]
    return case / "flamingo.pt", {"base": case / "lm", "encoders": {"clip": tower(case)}}


SOURCES: dict[str, Callable[[Path], Source]] = {
    "peft-adapter": adapter,
    "llava": out_of_hf("llava"),
    "llava-projector": trained("mm_projector.bin"),
    "llava-lora": trained("adapter_config.json"),
    "hf-llava": hf,
    "hf-llava-next": lambda folder: hf(folder, "llava_next"),
    "mm_simple": out_of_hf("mm_simple"),
    "hf-pair": out_of_hf("hf-pair"),
    "cogvlm": cogvlm,
    "sphinx": sphinx,
    "flamingo": flamingo,
}
OF_THE_MODEL = {"retinue", "peft-adapter"}
"""Sources that hold whatever model they were made of."""


def reached(path: Path, options: dict[str, Any], folder: Path) -> set[str]:
    """The targets that a model can become."""
    found = set()
    for target in TARGETS:
        try:
            convert(path, folder / target, to=target, **options)
        except RetinueError:
            assert not (folder / target).exists(), "nothing is left of a refused conversion"
        else:
            assert any((folder / target).iterdir())
            found.add(target)
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_pair_and_no_other(name: str, tmp_path: Path) -> None:
    path, options = SOURCES[name](tmp_path)
    wanted = set(LLAVA if name in OF_THE_MODEL else PAIRS[name])
    assert reached(path, options, tmp_path / "out") == wanted


def test_the_list_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(PAIRS) == {*SOURCES, "retinue"}
    anything = {target for name in SOURCES for target in PAIRS[name]}
    assert all(set(PAIRS[name]) == anything == set(TARGETS) for name in OF_THE_MODEL)
    assert run(["convert", "--list"]) == 0
    lines = dict(
        line.split(" -> ") for line in capsys.readouterr().out.splitlines() if " -> " in line
    )
    shown = {source.strip(): tuple(line.split(", ")) for source, line in lines.items()}
    assert shown == PAIRS


def test_an_unknown_target_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown target 'llavva'; did you mean 'llava'"):
        convert(tmp_path, tmp_path / "out", to="llavva")
    assert run(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "llavva"]) == 2


@pytest.mark.parametrize("target", ["llava", "hf", "mm_simple", "hf-pair"])
def test_an_encoder_at_another_resolution_stays_ours(target: str, tmp_path: Path) -> None:
    """Its interpolated positions are no part of other formats, whose answers would differ."""
    convert(hf(tmp_path)[0], tmp_path / "ours", to="retinue")
    file = tmp_path / "ours" / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["spec"]["encoders"]["clip"]["size"] = 2 * tiny_hf.SIDE
    file.write_text(json.dumps(config), "utf-8")
    with pytest.raises(CheckpointError, match="made for 28 pixels, which sees 56"):
        convert(tmp_path / "ours", tmp_path / "out", to=target)
