"""Every packaged training recipe runs two steps at a shrunken size."""

import json
import math

import pytest

import retinue
import tiny_recipe
from retinue.cli.main import run
from retinue.core.paths import recipes

NAMES = sorted(n for n, path in recipes().items() if "\ntrain:" in path.read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, tmp_path):
    recipe = tiny_recipe.shrink(name, tmp_path)
    out = tmp_path / "run"
    assert run(["train", str(recipe), "--out", str(out), "--device", "cpu"]) == 0
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert record["status"] == "done"
    (log,) = out.glob("*.jsonl")
    losses = [row["loss"] for row in map(json.loads, log.read_text("utf-8").splitlines())
              if "loss" in row]  # fmt: skip
    assert len(losses) >= 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    model, _ = retinue.load(out / "model")
    assert sum(p.numel() for p in model.parameters()) > 0
