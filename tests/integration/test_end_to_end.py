"""From nothing to answers on TinyWorld, and out into other systems' formats and back."""

import json

import pytest
import torch
import yaml

import retinue
from retinue.cli import quickstart
from retinue.cli.main import run

LM = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
EYE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 12,
}
RECIPE = {
    "model": {
        "dtype": "fp32",
        "lm": {"config": LM},
        "tokenizer": {"from": "world/tokenizer"},
        "encoders": {"clip": {"kind": "clip", "config": EYE}},
        "connector": {
            "kind": "mlp",
            "depth": 2,
            "of": {"kind": "take", "encoder": "clip", "layer": -2, "prefix": False},
        },
        "views": {"kind": "single"},
        "template": "vicuna_v1",
    },
    "train": {
        "precision": "fp32",
        "stages": [
            {
                "name": "learn",
                "trainable": {"**": "full"},
                "steps": 25,
                "global_batch": 8,
                "micro_batch": 8,
                "optim": {"lr": 3e-3},
                "schedule": {"kind": "constant"},
            }
        ],
    },
    "data": {
        "sources": [{"path": "world/train.json"}],
        "packing": "step",
        "max_tokens": 4096,
        "validation": 0.1,
    },
    "checkpoint": {"export": False, "keep": 1},
    "report": {"sinks": ["jsonl"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which data, build and train have run: world/, new/, run/."""
    root = tmp_path_factory.mktemp("path")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        words = ["--pictures", "48", "--questions", "12", "--size", "48", "max_objects=2"]
        assert run(["data", "world", "world", *words]) == 0
        (root / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), "utf-8")
        assert run(["data", "check", "world/train.json"]) == 0
        assert run(["build", "tiny.yaml", "new"]) == 0
        assert run(["data", "check", "tiny.yaml", "--model", "new"]) == 0
        assert run(["train", "tiny.yaml", "model={from: new}", "--out", "run"]) == 0
    return root


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_loss_falls_and_the_run_is_recorded(here):
    rows = read(here / "run/metrics.jsonl")
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 25
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    record = json.loads((here / "run/run.json").read_text("utf-8"))
    assert (record["status"], record["counts"]["updates"]) == ("done", 25)
    assert record["metrics"]["validation_loss"] < losses[0]
    before, _ = retinue.load("new")
    after, _ = retinue.load("run/model")
    moved = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert {name.partition(".")[0] for name in moved} == {"lm", "encoders", "connector"}
    assert "loss" in (here / "run/report.html").read_text("utf-8")


def test_the_same_command_again_does_nothing_new(here, capsys):
    model = (here / "run/model/model.safetensors").read_bytes()
    assert run(["train", "tiny.yaml", "model={from: new}", "--out", "run"]) == 0
    assert (here / "run/model/model.safetensors").read_bytes() == model
    assert len(read(here / "run/metrics.jsonl")) == 26  # 25 updates, one validation


def test_it_answers(here, capsys):
    rows = read(here / "world/test.jsonl")
    parts = rows[0]["messages"][0]["content"]
    picture, question = f"world/{parts[0]['image']}", parts[1]["text"]
    words = ["--image", picture, "--ask", question, "--max-new-tokens", "8"]
    assert run(["chat", "run/model", *words]) == 0
    answer = capsys.readouterr().out.strip()
    out = ["--input", "world/test.jsonl", "--output", "out.jsonl", "--max-new-tokens", "8"]
    assert run(["generate", "run/model", *out]) == 0
    answers = read(here / "out.jsonl")
    assert [row["id"] for row in answers] == [row["id"] for row in rows]
    assert answers[0]["text"].strip() == answer
    test = ["--data", "world/test.jsonl", "--json", "score/result.json", "--max-new-tokens", "8"]
    assert run(["eval", "run/model", *test, "--baseline"]) == 0
    found = json.loads((here / "score/result.json").read_text("utf-8"))
    assert found["counts"]["answered"] == len(rows)
    assert set(found["tasks"]) == {row["task"] for row in rows}
    texts = [row["text"] for row in read(here / "score/result.rows.jsonl")]
    assert texts == [row["text"] for row in answers]


@pytest.mark.parametrize("format", ["hf", "llava", "retinue"])
def test_it_goes_out_and_comes_back(here, format):
    options = ["--tower", "include"] if format == "llava" else []
    assert run(["convert", "run/model", f"as-{format}", "--to", format, *options]) == 0
    assert run(["convert", f"as-{format}", f"from-{format}", "--to", "retinue"]) == 0
    old, processor = retinue.load("run/model")
    for folder in (f"as-{format}", f"from-{format}"):
        new, _ = retinue.load(folder, template="vicuna_v1")
        theirs = dict(new.named_parameters())
        for name, value in old.named_parameters():
            rows = len(value)  # a format may need a row more, for its <image> token
            assert torch.equal(theirs[name][:rows], value), name
    assert processor.plan.lm_width == 48


def test_transformers_says_the_same(here):
    from PIL import Image
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    if not (here / "as-hf").exists():
        assert run(["convert", "run/model", "as-hf", "--to", "hf"]) == 0
    theirs = LlavaForConditionalGeneration.from_pretrained("as-hf").eval()
    prepare = LlavaProcessor.from_pretrained("as-hf")
    model, processor = retinue.load("as-hf", template="vicuna_v1")
    row = read(here / "world/test.jsonl")[0]["messages"][0]["content"]
    picture = Image.open(here / "world" / row[0]["image"])
    inputs = prepare(images=picture, text=f"USER: <image>\n{row[1]['text']}", return_tensors="pt")
    with torch.no_grad():
        found, wanted = model(**inputs).logits, theirs(**inputs).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert processor.decode(inputs["input_ids"][0].tolist())


def test_an_encoder_that_a_format_lacks_is_refused(here, capsys):
    part = {"kind": "patches", "config": {**EYE, "num_hidden_layers": 2}}
    change = [
        f"model.encoders={json.dumps({'clip': part})}",
        "model.connector.of.layer=-1",
        "model.views={kind: squash}",
    ]
    assert run(["build", "tiny.yaml", "patches", *change]) == 0
    capsys.readouterr()
    for format in ("hf", "llava"):
        assert run(["convert", "patches", f"no-{format}", "--to", format]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "patches" in line
        assert not (here / f"no-{format}").exists()


def test_quickstart_at_a_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (("LEAST", 6), ("WARM", 1), ("MEASURED", 2)):  # updates
        monkeypatch.setattr(quickstart, name, value)
    words = ["--pictures", "64", "--questions", "10", "--minutes", "0.02", "--device", "cpu"]
    assert run(["quickstart", *words]) == 0
    page = capsys.readouterr().out
    for part in ("[1/5]", "[5/5]", "baseline", "retinue chat", "you:"):
        assert part in page
    folder = tmp_path / "quickstart"
    for name in ("run/model/model.safetensors", "run/report.html", "run/run.json", "fresh.png"):
        assert (folder / name).stat().st_size > 0
    result = json.loads((folder / "test/result.json").read_text("utf-8"))
    assert result["counts"]["answered"] >= 10
    assert all("baseline" in own for own in result["tasks"].values())
    assert (
        run(["chat", "quickstart/run/model", "--image", "quickstart/fresh.png", "--ask", "?"]) == 0
    )
    change = [
        "model={from: quickstart/run/model}",
        "data.sources.0.path=quickstart/data/train.json",
    ]
    assert run(["train", "tiny/boxes", *change, "stages.learn.steps=1", "--out", "more"]) == 0
    assert (tmp_path / "more/model/model.safetensors").is_file()
