"""Two processes that share every update train as one does (`retinue train --processes 2`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny_recipe


def train(recipe: Path, out: Path, *options: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "retinue", "train", str(recipe), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny/quickstart", "tiny/m3"])
def test_two_replicas_train_as_one(name: str, tmp_path: Path) -> None:
    recipe = tiny_recipe.shrink(name, tmp_path, steps=4)
    alone = train(recipe, tmp_path / "one")
    shared = train(recipe, tmp_path / "two", "--processes", "2")
    assert len(alone) == len(shared)
    assert len(alone) % 4 == 0  # of every stage
    for one, two in zip(alone, shared, strict=True):
        assert one["supervised"] == two["supervised"]
        assert abs(one["loss"] - two["loss"]) < 1e-5
        assert abs(one["grad_norm"] - two["grad_norm"]) < 1e-4 * one["grad_norm"]
    first = load_file(tmp_path / "one" / "model" / "model.safetensors")
    second = load_file(tmp_path / "two" / "model" / "model.safetensors")
    for name, tensor in first.items():
        # Muon's orthogonal steps run in bf16 and magnify rounding: a few of its units
        assert float((tensor - second[name]).abs().max()) < 2e-3, name
