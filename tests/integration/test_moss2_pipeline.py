"""LLaVA-MOSS2's pipeline through the commands: two folders and a JSON -> a model that is exported.

The parts, the data and the keys that the original writes are those of the golden training case.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases

import retinue
from retinue.cli.main import run
from retinue.convert.weights import Weights
from retinue.text.template import resolve

CASES = cases("llava-moss2", "*train*", having="training_log.json")
CASE = next(iter(CASES), Path())
SMALL = ["train.precision=fp32", "data.workers=0", "report.sinks=[jsonl]", "report.page=false"]
SIZES = ["steps=2", "global_batch=4", "micro_batch=2"]


def log() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CASE / "training_log.json").read_text())
    return found


def flag(name: str, *, stage: str = "finetune") -> str:
    words = log()[stage]["args"]
    found: str = words[words.index(f"--{name}") + 1]
    return found


def parts() -> list[str]:
    """Overrides that put the case's folders and files in place of the public ones."""
    lm, tower = CASE / flag("model_name_or_path"), CASE / flag("vision_tower")
    return [
        f"model.lm.from={lm}",
        f"model.encoders.clip.from={tower}",
        "model.dtype=fp32",
        *source("pretrain"),
    ]


def source(stage: str, *, under: str = "data") -> list[str]:
    data, root = CASE / flag("data_path", stage=stage), CASE / flag("image_folder", stage=stage)
    return [f"{under}.sources.0.path={data}", f"{under}.sources.0.media_root={root}"]


def sized(*stages: str) -> list[str]:
    return [f"stages.{stage}.{size}" for stage in stages for size in SIZES]


def picture() -> str:
    return str(next(iter(sorted((CASE / flag("image_folder")).glob("*.png")))))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which build, align and sft have run: new/, align/, sft/."""
    root = tmp_path_factory.mktemp("moss2")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        built = ["build", "moss2-2b/align", "new", *parts()]
        assert run(built) == 0
        align = ["train", "moss2-2b/align", "model={from: new}", "--out", "align", *SMALL]
        assert run([*align, *source("pretrain"), *sized("align"), "checkpoint.every=1"]) == 0
        sft = ["train", "moss2-2b/sft", "model.from=align/model", "--out", "sft", *SMALL]
        assert run([*sft, *source("finetune"), *sized("sft"), "checkpoint.every=1"]) == 0
    return root


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_build_says_what_is_new_and_what_is_loaded(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", "moss2-2b/align", "again", *parts(), "--json"]) == 0
    rows = {row["part"]: row for row in json.loads(capsys.readouterr().out)["parts"]}
    assert rows["lm"]["loaded"] > 0
    assert rows["encoders.clip"]["loaded"] > 0
    sizes = log()["pretrain"]["mm_projector_bin"].values()
    number = sum(torch.Size(shape).numel() for shape, _ in sizes)
    assert (rows["connector"]["loaded"], rows["connector"]["new"]) == (0, number)
    assert run(["build", "moss2-2b/align", "again", *parts()]) == 0
    said = capsys.readouterr()
    total = sum(row["loaded"] + row["new"] for row in rows.values())
    assert f"{total:,} parameters" in said.out + said.err


def test_the_fresh_projector_is_drawn_as_the_original_s(here: Path) -> None:
    """Normal weights and no biases; recorded: standard deviation and largest value."""
    own = dict(retinue.load("new", template="plain")[0].connector.named_parameters())
    for name, (spread, _) in log()["pretrain"]["init_projector_stats"].items():
        value = own[name.replace("model.mm_projector", "net")]
        assert value.std().item() == pytest.approx(spread, rel=0.2, abs=0)


def test_stages_train_what_they_should(here: Path) -> None:
    new, align, sft = (
        dict(retinue.load(folder, template="plain")[0].named_parameters())
        for folder in ("new", "align/model", "sft/model")
    )

    def moved(old: dict[str, Any], later: dict[str, Any]) -> set[str]:
        return {n.partition(".")[0] for n in old if not torch.equal(old[n], later[n])}

    assert moved(new, align) == {"connector"}
    assert moved(align, sft) == {"connector", "lm"}


def test_checkpoints_on_the_way_are_whole_models(here: Path) -> None:
    for stage in ("align", "sft"):
        folders = sorted(Path(f"{stage}/checkpoints").iterdir())
        assert len(folders) == 2
        last, _ = retinue.load(f"{stage}/model")
        for folder in folders:
            model, processor = retinue.load(folder)
            assert set(model.state_dict()) == set(last.state_dict())
            assert processor.template.name == {"align": "plain", "sft": "llava_llama_2"}[stage]


def test_the_conversation_is_kept_and_another_warned_about(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, processor = retinue.load("sft/model")
    assert processor.template == resolve("llava_llama_2")
    ask = ["chat", "sft/model", "--image", picture(), "--ask", "What?", "--max-new-tokens", "4"]
    assert run(ask) == 0
    plain = capsys.readouterr()
    assert plain.out.strip()
    assert "saved with the template" not in plain.err
    assert run([*ask, "--template", "llava_v0"]) == 0
    assert "saved with the template llava_llama_2; using llava_v0" in capsys.readouterr().err


@pytest.mark.parametrize("quant", ["8bit", "4bit", "int8", "int4"])
def test_chat_in_fewer_bits(here: Path, capsys: pytest.CaptureFixture[str], quant: str) -> None:
    ask = ["chat", "sft/model", "--image", picture(), "--ask", "What?", "--max-new-tokens", "4"]
    assert run([*ask, "--quant", quant]) == 0
    assert capsys.readouterr().out.strip()


def test_two_stages_in_one_run(here: Path) -> None:
    """The same weights as one by one: stages share nothing but the model."""
    command = ["train", "moss2-2b/two-stage", "--out", "both", *SMALL, *parts()]
    more = [*source("finetune", under="stages.sft.data"), *sized("align", "sft")]
    assert run([*command, *more]) == 0
    both, processor = retinue.load("both/model")
    assert processor.template.name == "llava_llama_2"
    names = {
        row["stage"] for row in map(json.loads, Path("both/metrics.jsonl").read_text().splitlines())
    }
    assert names == {"align", "sft"}
    one, _ = retinue.load("sft/model")
    theirs = dict(one.named_parameters())
    for name, value in both.named_parameters():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0, msg=name)


def test_the_export_is_what_the_original_writes(here: Path) -> None:
    options = ["--to", "llava_moss2", "--files", "bin", "--tower", "include"]
    assert run(["convert", "sft/model", "out", *options]) == 0
    expected = log()["finetune"]["pytorch_model_bin"]
    weights = Weights.of(Path("out"))
    assert [file.name for file in weights.files] == ["pytorch_model.bin"]
    assert {name: list(weights.shape(name)) for name in weights} == {
        name: shape for name, (shape, _) in expected.items()
    }
    assert {str(weights.dtype(name)) for name in weights} == {d for _, d in expected.values()}
    config = json.loads(Path("out/config.json").read_text())
    read = json.loads((CASE / flag("model_name_or_path") / "config.json").read_text())
    own = {name for name in read if name.startswith(("mm_", "rope", "num_", "hidden", "vocab"))}
    gone = {"mm_vision_tower", "mm_resampler_type"}  # its own folder; a field that nothing reads
    assert {name: config[name] for name in own - gone} == {name: read[name] for name in own - gone}
    assert config["model_type"] == "llava_moss2"
    model, _ = retinue.load("sft/model")
    again, processor = retinue.load("out")
    assert processor.template.name == "llava_llama_2"
    theirs = dict(again.named_parameters())
    for name, value in model.named_parameters():
        assert torch.equal(value, theirs[name]), name
    assert run(["convert", "align/model", "p", "--to", "llava_moss2", "--files", "projector"]) == 0
    kept = torch.load("p/mm_projector.bin", weights_only=True)
    shapes = {name: list(value.shape) for name, value in kept.items()}
    expected = log()["pretrain"]["mm_projector_bin"]
    assert shapes == {name: shape for name, (shape, _) in expected.items()}


def test_on_a_drawn_world(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same commands on TinyWorld's data end with a model that answers.

    Of its training rows the first stage takes those that are a picture and a caption.
    """
    words = ["--pictures", "16", "--questions", "4", "--size", "48", "max_objects=2"]
    assert run(["data", "world", "world", *words]) == 0
    rows = ["data.sources=[{path: world/train.json}]", *SMALL]
    align = ["train", "moss2-2b/align", "model={from: new}", "--out", "captions", *rows]
    assert run([*align, *sized("align")]) == 3
    assert "not a picture with a caption" in capsys.readouterr().err
    assert run([*align, *sized("align"), "data.on_error=skip"]) == 0
    skipped = json.loads(Path("captions/run.json").read_text())["counts"]["skipped"]
    assert 0 < skipped < len(json.loads(Path("world/train.json").read_text()))
    sft = ["train", "moss2-2b/sft", "model.from=captions/model", "--out", "drawn", *rows]
    assert run([*sft, *sized("sft"), "--deepspeed", str(zero(here))]) == 0
    assert "parallel.shard" in capsys.readouterr().err
    asked = ["--image", picture(), "--ask", "Which colour?", "--max-new-tokens", "4"]
    assert run(["chat", "drawn/model", *asked]) == 0
    assert capsys.readouterr().out.strip()
    questions = ["--data", "world/test.jsonl", "--baseline", "--max-new-tokens", "4"]
    assert run(["eval", "drawn/model", *questions, "--json", "scores.json"]) == 0
    assert 0 <= json.loads(Path("scores.json").read_text())["metrics"]["score"] <= 1


def zero(folder: Path) -> Path:
    file = folder / "zero2.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": False}}))
    return file


def test_a_resumed_run_keeps_each_stage_s_conversation(here: Path) -> None:
    """Stopped within the second stage, and once more after its end."""
    command = ["train", "moss2-2b/two-stage", "--out", "resumed", *SMALL, *parts()]
    command += [*source("finetune", under="stages.sft.data"), *sized("align", "sft")]
    assert run([*command, "checkpoint.every=1"]) == 0
    straight = Weights.of(Path("resumed/model"))
    wanted = {name: straight.read(name).clone() for name in straight}
    newest = sorted(Path("resumed/checkpoints").iterdir())[-1]
    for lost in (newest, None):
        if lost is not None:
            shutil.rmtree(lost)
        shutil.rmtree("resumed/model")
        assert run([*command, "checkpoint.every=1"]) == 0
        model, processor = retinue.load("resumed/model")
        assert processor.template.name == "llava_llama_2"
        for name, value in model.state_dict().items():
            assert torch.equal(value, wanted[name]), name
