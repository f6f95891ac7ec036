"""Adapters trained on a quantized base: saved alone, loaded on codes or on full weights, merged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from retinue.cli.train import train
from retinue.core.errors import ConfigError
from retinue.hub.build import build
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.model.adapters import adapter_names, merge_adapters
from retinue.model.quant.swap import dequantize, quantized
from retinue.train.context import RunResult
from retinue.train.evaluator import Evaluation
from retinue.train.spec import RunSpec
from tiny import ask, picture, tiny_model
from tiny_run import recipe, write_data

HAVE_BNB = importlib.util.find_spec("bitsandbytes") is not None
KINDS = ["int4", "int8", *(["bnb4", "bnb8"] if HAVE_BNB else [])]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a full model."""
    folder = tmp_path_factory.mktemp("qlora")
    write_data(folder)
    save(*tiny_model(), folder / "base")
    return folder


def qlora(root: Path, kind: str | None, **changes: Any) -> RunSpec:
    source = {"path": str(root / "data.json"), "format": "llava", "media_root": str(root)}
    return RunSpec.parse(
        recipe(
            root,
            model={"from": str(root / "base")},
            train={"quant": kind, **changes},
            data={"sources": [source]},
        )
    )


def logits(model: Any, processor: Any) -> torch.Tensor:
    batch = processor([ask("a", "what colour?", picture()), ask("b", "how many?")])
    with torch.no_grad():
        found: torch.Tensor = model.run(batch).logits[batch.segments > 0]
    return found.log_softmax(-1)


def go(spec: RunSpec, folder: Path) -> tuple[RunResult, torch.Tensor]:
    """The run, and the logits of the model that it ended with."""
    seen = []

    def evaluator(model: Any, processor: Any) -> Evaluation:
        assert len(list(quantized(model))) == 14
        seen.append(logits(model, processor))
        return Evaluation()

    result = train(spec, out=folder, device="cpu", evaluator=evaluator)
    return result, seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_trains_saves_adapters_reloads_and_merges(kind: str, root: Path, tmp_path: Path) -> None:
    result, ended = go(qlora(root, kind), tmp_path / "run")
    place = result.model
    assert place is not None
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]

    with safe_open(place / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {
            f"connector.net.{n}.{w}" for n in (0, 2) for w in ("weight", "bias")
        }
    with safe_open(place / "adapter/adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in key for key in file.keys())  # noqa: SIM118
    assert json.loads((place / "provenance.json").read_text())["quant"] == kind

    again, processor = load(place, quant=kind)
    assert adapter_names(again) == ["default"]
    assert torch.equal(logits(again, processor), ended)
    unrounded, _ = load(place)
    assert not list(quantized(unrounded))
    assert 0 < (logits(unrounded, processor) - ended).abs().mean() < 1

    merge_adapters(again)
    dequantize(again)
    save(again, processor, tmp_path / "merged")
    merged, _ = load(tmp_path / "merged")
    # the same sums in another order; LLM.int8 rounded its inputs as well
    allowed = 0.3 if kind == "bnb8" else 1e-4
    assert (logits(merged, processor) - ended).abs().max() < allowed


def test_goes_on_where_it_stopped(root: Path, tmp_path: Path) -> None:
    """Checkpoints hold what trained; the codes come from the base again."""
    _, straight = go(qlora(root, "int4"), tmp_path / "straight")
    _, first = go(qlora(root, "int4"), tmp_path / "run")
    last = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    (last / "trainer_state.json").unlink()  # as if it had been killed before
    result, resumed = go(qlora(root, "int4"), tmp_path / "run")
    assert result.model is not None
    assert torch.equal(first, straight)
    assert torch.equal(resumed, straight)
    with pytest.raises(ConfigError, match="another quant"):
        go(qlora(root, "int8"), tmp_path / "run")


def test_what_cannot_be(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'bnb8'"):
        qlora(root, "bnb")
    stages = recipe(root)["train"]["stages"]
    with pytest.raises(ConfigError, match="last stage"):
        qlora(root, "int4", stages=[stages[1], {**stages[1], "name": "again"}])
    whole = {**stages[0], "trainable": {"lm.**": "full"}}
    with pytest.raises(ConfigError, match="quantized"):
        go(qlora(root, "int4", stages=[whole]), tmp_path / "whole")
    section = {"lm": {"config": {}}, "encoders": {"a": {"from": "x"}}, "connector": {}}
    with pytest.raises(ConfigError, match=r"model\.from=FOLDER"):
        build(section, quant="int4")
    result, _ = go(qlora(root, "int8", stages=[{**stages[1], "steps": 1}]), tmp_path / "one")
    with pytest.raises(ConfigError, match="cannot train on"):
        build({"from": str(result.model)}, quant="int8")


def test_verbs_take_quant(root: Path, tmp_path: Path) -> None:
    from retinue.cli import chat, eval, generate

    rows = tmp_path / "q.jsonl"
    rows.write_text(json.dumps({"id": "a", "messages": [{"role": "user", "content": "what?"}]}))
    few = ["--max-new-tokens", "2", "--quant", "int4", "--device", "cpu"]
    base, out = str(root / "base"), str(tmp_path / "a.jsonl")
    call = CliRunner().invoke
    asked = call(chat.app, [base, "--ask", "what?", "--quant-encoders", *few])
    assert asked.exit_code == 0, asked.output
    made = call(generate.app, [base, "--input", str(rows), "--output", out, *few])
    assert made.exit_code == 0, made.output
    settings = json.loads(next(tmp_path.glob("*.run.json")).read_text())["settings"]
    assert settings["quant"] == "int4"
    few[3] = "int8"
    other = call(generate.app, [base, "--input", str(rows), "--output", out, *few])
    assert "quant was 'int4'" in str(other.exception)
    rows.write_text(rows.read_text().replace("}]}", '}], "answer": "red"}'))
    few[3] = "int5"
    wrong = call(eval.app, [base, "--data", str(rows), "--scorer", "exact", *few])
    assert "did you mean" in str(wrong.exception)
