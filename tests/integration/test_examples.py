"""Every script under examples/ runs, at tiny scale."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from retinue.cli.main import run
from retinue.hub.save import save
from tiny import picture, tiny_model

FOLDER = Path(__file__).parents[2] / "examples"
RUN_HERE = {"convert_llava", "digits", "load_and_chat", "moss2_parts", "pack_a_batch"}


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_examples_are_run_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == RUN_HERE


def test_pack_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    losses = example("pack_a_batch").main()
    assert abs(losses["packed"] - losses["padded"]) < 1e-5
    assert "none: " in capsys.readouterr().out


def test_load_and_chat(tmp_path: Path) -> None:
    save(*tiny_model(), tmp_path / "model")
    picture(3).save(tmp_path / "picture.png")
    line = [str(tmp_path / "model"), str(tmp_path / "picture.png"), "--max-new-tokens", "4"]
    answers = example("load_and_chat").main(line)
    assert len(answers) == 3
    assert any(answers)


def test_convert_llava(tmp_path: Path) -> None:
    assert example("convert_llava").main([str(tmp_path)]) == 0.0


def test_digits_at_a_small_scale(tmp_path: Path) -> None:
    """A few scans, 15 updates: every verb runs and the numbers are written."""
    example("digits").main([str(tmp_path), "--count", "40", "--epochs", "15"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["counts"]["questions"] == 8
    rows = [
        json.loads(row)
        for row in (tmp_path / "run" / "metrics.jsonl").read_text().split("\n")
        if row
    ]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert len(list((tmp_path / "images").glob("*.png"))) == 40


@pytest.mark.slow
def test_digits_reads_95_of_100(tmp_path: Path) -> None:
    """The whole example: 1,797 real scans, a fifth held out."""
    example("digits").main([str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["counts"]["questions"] == 359
    assert result["metrics"]["score"] >= 0.95


def test_parts_of_a_small_moss2_are_built_into_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pictures", "8", "--questions", "4", "max_objects=2"]
    assert run(["data", "world", str(tmp_path / "world"), *words]) == 0
    count = example("moss2_parts").main([str(tmp_path / "world"), str(tmp_path / "parts")])
    capsys.readouterr()
    parts = [
        f"model.lm.from={tmp_path}/parts/lm",
        f"model.encoders.clip.from={tmp_path}/parts/tower",
    ]
    assert run(["build", "moss2-2b/align", str(tmp_path / "new"), *parts, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["parts"]
    assert sum(row["loaded"] for row in rows) == count
