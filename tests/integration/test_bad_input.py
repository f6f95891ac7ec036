"""Bad input at the command line: one clear line, a code by kind, nothing half-written.

2 = the user's command, recipe or folder, 3 = data, 4 = the machine.
"""

import errno
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file

import retinue
from retinue.cli.main import run
from retinue.hub import files as hub_files
from retinue.hub.save import save
from retinue.train import state as train_state
from tiny import picture, tiny_model

TRAIN = ["train", "my.yaml", "--out", "run", "--device", "cpu"]
SHORT = ["--max-new-tokens", "2", "--device", "cpu"]
QUESTION = [{"type": "image", "image": "0.png"}, {"type": "text", "text": "what colour?"}]


def png_of(width, height):
    """The header of a picture of that size, and hardly any pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def record(name, *, value="<image>\nwhat colour?", answer="red", image="0.png"):
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}


BAD_RECORDS = {
    "broken": (record("bad", image="broken.png"), ["broken.png", "broken or truncated"]),
    "no-picture": (
        record("bad", image="text.png"),
        ["text.png", "no picture that Pillow can read"],
    ),
    "missing": (record("bad", image="gone.png"), ["gone.png", "no such file"]),
    "bomb": (record("bad", image="bomb.png"), ["bomb.png", "120000000 pixels", "at most"]),
    "placeholders": (
        record("bad", value="<image>\n<image>\nwhat?"),
        ["data.json:", "bad", "2 ", "<image>", "1 "],
    ),
    "empty-answer": (record("bad", answer=" "), ["data.json:", "bad", "empty"]),
    "no-conversation": ({"id": "bad", "image": "0.png"}, ["data.json:", "bad", "conversations"]),
}
"""What is wrong -> the record, and what the line must say."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Folders that many tests read: a model, its truncation, others, pictures."""
    root = tmp_path_factory.mktemp("store")
    model, processor = tiny_model(seed=3)
    save(model, processor, root / "model")
    shutil.copytree(root / "model", root / "truncated")
    weights = root / "truncated/model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    shutil.copytree(root / "model", root / "headless")
    (root / "headless/config.json").write_text("{broken", "utf-8")
    for name, change in (("mistyped", {"hidden_size": "x"}), ("lacking", None), ("unprepared", {})):
        shutil.copytree(root / "model", root / name)
        file = root / name / "config.json"
        config = json.loads(file.read_text("utf-8"))
        config["text_config"] = change if change is None else {**config["text_config"], **change}
        file.write_text(json.dumps(config), "utf-8")
    (root / "unprepared/processor.json").unlink()
    (root / "empty").mkdir()
    (root / "letters").mkdir()
    (root / "letters/readme.txt").write_text("hello", "utf-8")
    adapter = root / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    stem = "base_model.model.lm.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{stem}A.weight": torch.ones(2, 48), f"{stem}B.weight": torch.ones(48, 2)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    pictures = root / "pictures"
    pictures.mkdir()
    for n in range(4):
        picture(n, width=90, height=80).save(pictures / f"{n}.png")
    (pictures / "bomb.png").write_bytes(png_of(12000, 10000))
    (pictures / "text.png").write_bytes(b"no picture at all")
    data = (pictures / "0.png").read_bytes()
    (pictures / "broken.png").write_bytes(data[: len(data) // 2])
    return root


@pytest.fixture
def place(store, tmp_path, monkeypatch):
    """A working folder with links to the store's."""
    for path in store.iterdir():
        if path.name != "pictures":
            (tmp_path / path.name).symlink_to(path)
    for path in (store / "pictures").iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_records(*more, count=6):
    rows = [record(f"good{n}", image=f"{n % 4}.png") for n in range(count)]
    Path("data.json").write_text(json.dumps([*rows, *more]), "utf-8")


def write_recipe(**changes):
    """my.yaml: two updates of the connector."""
    stage = {
        "name": "s",
        "trainable": {"connector.**": "full"},
        "steps": 2,
        "global_batch": 4,
        "micro_batch": 2,
        "optim": {"lr": 1e-3},
    }
    data = {
        "model": {"from": "model"},
        "train": {"precision": "fp32", "stages": [stage]},
        "data": {"sources": [{"path": "data.json", "format": "llava"}]},
        "checkpoint": {"every": 1},
        "report": {"sinks": ["jsonl"]},
        **changes,
    }
    Path("my.yaml").write_text(yaml.safe_dump(data), "utf-8")


def write_rows(*rows):
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def row(**changes):
    return {"id": "a", "messages": [{"role": "user", "content": QUESTION}], **changes}


def asks(name):
    parts = [{"type": "image", "image": name}, {"type": "text", "text": "what?"}]
    return [{"role": "user", "content": parts}]


def files(folder):
    """Every file below, by its relative path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(capsys, arguments, code, says):
    """Run it; the last line of stderr is the one that tells, and it tells the place once."""
    capsys.readouterr()
    assert run(arguments) == code, capsys.readouterr().err
    err = capsys.readouterr().err
    lines = err.splitlines()
    told = [line for line in lines if line.startswith("retinue: ")]
    assert "Traceback" not in err
    assert told == lines[-1:], err
    (line,) = told
    assert [text for text in says if text not in line] == [], line
    paths = re.findall(
        r"[^\s:;,()'\"]*[\w-]/?[\w.-]+\.(?:png|json|jsonl|yaml|safetensors)\b",
        re.sub(r"\S+ -> \S+", "", line),
    )
    assert len(paths) == len(set(paths)), line
    assert len(line) < 700, line
    return line


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_stops_training(place, capsys, name):
    bad, says = BAD_RECORDS[name]
    write_records(bad)
    write_recipe()
    refused(capsys, TRAIN, 3, says)
    assert json.loads(Path("run/run.json").read_text("utf-8"))["status"] == "failed"
    assert not Path("run/model").exists()


def test_check_collects_all_problems(place, capsys):
    write_records(*(bad for bad, _ in BAD_RECORDS.values()))
    line = ["data", "check", "data.json", "--model", "model", "--report", "found.json"]
    assert run(line) == 3
    page = capsys.readouterr()
    assert "6 of 13 samples are fit for training" in page.out
    assert page.err == ""
    (source,) = json.loads(Path("found.json").read_text("utf-8"))["sources"]
    said = [problem["message"] for problem in source["problems"]]
    assert len(said) == len(BAD_RECORDS)
    for message, (_, says) in zip(said, BAD_RECORDS.values(), strict=True):
        assert [text for text in says if text not in message] == []
    assert source["kinds"] == {
        "empty answer": 1, "picture": 4, "placeholders": 1, "record": 1
    }  # fmt: skip


def test_skipping_trains_on_and_lists_what_was_left_out(place, capsys):
    write_records(*(bad for bad, _ in BAD_RECORDS.values()))
    write_recipe()
    assert run([*TRAIN, "data.on_error=skip", "train.stages.s.steps=5"]) == 0
    counts = json.loads(Path("run/run.json").read_text("utf-8"))["counts"]
    assert counts == {"updates": 5, "skipped": len(BAD_RECORDS)}
    page = Path("run/report.html").read_text("utf-8")
    for name in ("broken.png", "text.png", "gone.png", "bomb.png", "&lt;image&gt;"):
        assert name in page


def test_nothing_but_bad_records(place, capsys):
    write_records(BAD_RECORDS["broken"][0], BAD_RECORDS["missing"][0], count=0)
    write_recipe()
    says = ["no sample can be read", "broken.png", "retinue data check"]
    refused(capsys, [*TRAIN, "data.on_error=skip"], 3, says)


DATA_FILES = {
    "absent": (None, ["data.json", "No such file"]),
    "empty": ("", ["data.json", "empty"]),
    "torn": ('[{"id": "a", "image"', ["data.json:1", "broken JSON"]),
    "no list": ('{"a": ', ["data.json", "JSON"]),
    "latin": (b'[{"id": "\xe9"}]', ["data.json:1", "UTF-8"]),
}


@pytest.mark.parametrize("name", DATA_FILES)
def test_unreadable_data_files(place, capsys, name):
    text, says = DATA_FILES[name]
    if text is not None:
        Path("data.json").write_bytes(text.encode() if isinstance(text, str) else text)
    write_recipe()
    refused(capsys, TRAIN, 3, says)
    assert run(["data", "check", "data.json"]) == 3
    assert [word for word in says if word not in capsys.readouterr().out.replace("\n", "")][
        1:
    ] == []


ROWS = {
    "no messages": ({"id": "a"}, ["in.jsonl:1", "messages"]),
    "a missing picture": (row(messages=asks("gone.png")), ["gone.png", "no such file"]),
    "a broken picture": (row(messages=asks("broken.png")), ["broken.png", "broken or truncated"]),
    "a bomb": (row(messages=asks("bomb.png")), ["bomb.png", "120000000 pixels"]),
    "an unknown role": ({"id": "a", "messages": [{"role": "boss", "content": "x"}]}, ["boss"]),
    "an unknown part": (
        row(messages=[{"role": "user", "content": [{"type": "smell", "smell": "x"}]}]),
        ["in.jsonl:1", "smell"],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_cannot_be_answered(place, capsys, name):
    bad, says = ROWS[name]
    write_rows(row(), bad)
    files = ["--input", "in.jsonl", "--output", "out.jsonl"]
    says = [text.replace(":1", ":2") for text in says]
    refused(capsys, ["generate", "model", *files, *SHORT], 3, says)
    files = ["--data", "in.jsonl", "--json", "out/result.json", "--scorer", "exact"]
    write_rows(row(answer="red"), {**bad, "answer": "red"})
    refused(capsys, ["eval", "model", *files, *SHORT], 3, says)
    assert not Path("out/result.json").exists()
    assert json.loads(Path("out/run.json").read_text("utf-8"))["status"] == "failed"


@pytest.mark.parametrize("name", ["gone.png", "broken.png", "bomb.png", "text.png"])
def test_pictures_of_a_chat(place, capsys, name):
    refused(capsys, ["chat", "model", "--image", name, "--ask", "what?"], 3, [name])


# ---------------------------------------------------------------- commands and recipes


COMMANDS = {
    "unknown recipe": (["train", "llava15-7b/stf"], ["llava15-7b/stf", "did you mean"]),
    "recipe file": (["train", "none.yaml"], ["none.yaml"]),
    "unknown key": (["train", "my.yaml", "data.sampler_=x"], ["data.sampler_", "did you mean"]),
    "wrong value": (["train", "my.yaml", "train.precision=fp7"], ["train.precision", "fp7"]),
    "no override": (["train", "my.yaml", "nonsense"], ["nonsense", "path=value"]),
    "override YAML": (["train", "my.yaml", "data.sources=[1"], ["data.sources=[1"]),
    "no such stage": (["train", "my.yaml", "stages.t.steps=1"], ["'t'", "names: s"]),
    "no such item": (["train", "my.yaml", "data.sources.7.path=x"], ["7", "the list has 1"]),
    "batch": (["train", "my.yaml", "stages.s.global_batch=5"], ["5", "micro-batches", "4 or 6"]),
    "pattern": (["train", "my.yaml", 'stages.s.trainable={"nose.**": full}'], ["nose.**"]),
    "unknown scorer": (
        ["eval", "model", "--data", "in.jsonl", "--scorer", "exat", "--json", "r/r.json"],
        ["exat", "did you mean 'exact'"],
    ),
    "no reference": (
        ["eval", "model", "--data", "in.jsonl", "--scorer", "exact", "--json", "r/r.json"],
        ["in.jsonl:1", "nothing says what is right"],
    ),
    "template": (["chat", "model", "--template", "plian", "--ask", "x"], ["plian", "'plain'"]),
    "world task": (["data", "world", "w", "--tasks", "ocrr"], ["ocrr", "'ocr'"]),
    "world need": (["data", "world", "w", "--tasks", "pose"], ["figures"]),
    "world option": (["data", "world", "w", "max_object=2"], ["max_object", "'max_objects'"]),
    "world size": (["data", "world", "w", "max_objects=12"], ["max_objects"]),
    "convert format": (["convert", "model", "new", "--to", "llava"], ["llava", "'patches'"]),
    "build parts": (["build", "my.yaml", "new", "model.from=null"], ["my.yaml", "model"]),
    "build here": (["build", "my.yaml", "."], ["only a model's folder is replaced"]),
    "train into a file": (["train", "my.yaml", "--out", "0.png"], ["0.png", "check the path"]),
    "draw into a file": (["data", "world", "0.png"], ["0.png", "check the path"]),
    "resume": (["train", "my.yaml", "checkpoint.resume=gone"], ["gone", "checkpoint.resume"]),
}
"""What is wrong -> the command line, and what the line must say; all end with 2."""


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_cannot_be(place, capsys, name):
    words, says = COMMANDS[name]
    write_records()
    write_recipe()
    write_rows(row())
    before = files(place)
    refused(capsys, words, 3 if name == "no reference" else 2, says)
    left = files(place) - before
    assert {path for path in left if not path.startswith(("runs/", "r/run.json"))} == set()


YAML = {
    "broken": ("model: [1\ntrain: x", ["my.yaml", ":2"]),
    "tabs": ("model:\n\tfrom: x\n", ["my.yaml:2"]),
    "twice": ("seed: 1\nseed: 2\n", ["my.yaml:2", "seed"]),
    "a list": ("- 1\n", ["my.yaml", "mapping"]),
    "empty": ("", ["my.yaml"]),
    "circle": ("include: my.yaml\n", ["my.yaml", "circle"]),
    "include": ("include: none.yaml\n", ["my.yaml", "none.yaml"]),
    "no train": ("model: {from: model}\n", ["my.yaml", "train", "data"]),
}


@pytest.mark.parametrize("name", YAML)
def test_recipes_that_cannot_be_read(place, capsys, name):
    text, says = YAML[name]
    Path("my.yaml").write_text(text, "utf-8")
    refused(capsys, ["train", "my.yaml"], 2, says)


# ---------------------------------------------------------------- models


MODELS = {
    "gone": ("gone/model/folder", ["gone/model/folder"]),
    "a file": ("data.json", ["data.json"]),
    "empty": ("empty", ["empty", "no"]),
    "letters": ("letters", ["letters", "no"]),
    "broken config": ("headless", ["config.json"]),
    "truncated": ("truncated", ["model.safetensors", "expected", "found"]),
    "wrong type": ("mistyped", ["mistyped/config.json", "hidden_size"]),
    "lacking part": ("lacking", ["lacking/config.json", "text_config"]),
    "no processor": ("unprepared", ["unprepared/processor.json"]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("verb", ["chat", "generate", "eval", "convert", "train", "data"])
def test_folders_that_are_no_checkpoint(place, capsys, verb, name):
    path, says = MODELS[name]
    if verb == "data" and name == "truncated":
        return  # a check reads no weights
    write_records()
    write_recipe()
    write_rows(row(answer="red"))
    words = {
        "chat": ["chat", path, "--ask", "what?"],
        "generate": ["generate", path, "--input", "in.jsonl", "--output", "out/out.jsonl"],
        "eval": ["eval", path, "--data", "in.jsonl", "--scorer", "exact", "--json", "out/r.json"],
        "convert": ["convert", path, "out/new", "--to", "hf"],
        "train": ["train", "my.yaml", f"model.from={path}", "--out", "out"],
        "data": ["data", "check", "data.json", "--model", path],
    }[verb]
    refused(capsys, words, 2, says)
    assert files(place / "out") <= {"run.json"}


def test_an_adapter_of_another_model(place, capsys):
    words = ["chat", "model", "--adapter", "adapter", "--ask", "what?"]
    refused(capsys, words, 2, ["q_proj", "48", "32"])
    words = ["chat", "adapter", "--base", "model", "--ask", "what?"]
    refused(capsys, words, 2, ["q_proj", "48", "32"])
    refused(capsys, ["chat", "adapter", "--ask", "what?"], 2, ["adapter", "--base"])


def test_a_resume_from_another_model(place, capsys):
    write_records()
    write_recipe()
    assert run(TRAIN) == 0
    save(*tiny_model(seed=3, width=48), "wider")
    again = [*TRAIN, "model.from=wider", "stages.s.steps=4"]
    kept = files(place / "run/checkpoints")
    refused(capsys, again, 2, ["does not fit"])
    assert files(place / "run/checkpoints") == kept


# ---------------------------------------------------------------- the machine


def no_room(monkeypatch, *, after):
    """The disk is full from the `after`-th file of weights on."""
    left = [after]

    def full(*args, **keywords):
        left[0] -= 1
        if left[0] < 0:
            Path(args[1]).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_file(*args, **keywords)

    for module in (hub_files, train_state):
        monkeypatch.setattr(module, "save_file", full)


def test_a_full_disk_while_training_keeps_the_last_checkpoint(place, capsys, monkeypatch):
    write_records()
    write_recipe()
    with monkeypatch.context() as patched:
        no_room(patched, after=3)  # a checkpoint is a model and a state
        line = refused(capsys, [*TRAIN, "stages.s.steps=4"], 4, ["no room", "resume"])
    assert "step-00000001 is intact" in line
    left = [path.name for path in Path("run/checkpoints").iterdir()]
    assert left == ["step-00000001"]
    retinue.load("run/checkpoints/step-00000001")
    assert run([*TRAIN, "stages.s.steps=4"]) == 0
    assert json.loads(Path("run/run.json").read_text("utf-8"))["counts"]["updates"] == 4


FULL_DISK = {
    "convert": ["convert", "model", "new", "--to", "retinue"],
    "build": ["build", "my.yaml", "new"],
    "first checkpoint": ["train", "my.yaml", "--out", "new"],
    "final model": ["train", "my.yaml", "--out", "new", "checkpoint.export=false"],
}


@pytest.mark.parametrize("name", FULL_DISK)
def test_a_full_disk_leaves_nothing_half_written(place, capsys, monkeypatch, name):
    write_records()
    write_recipe()
    no_room(monkeypatch, after=2 if name == "final model" else 0)  # two states come before it
    line = refused(capsys, FULL_DISK[name], 4, ["new", "no room", "nothing was left behind"])
    assert "/." not in line
    assert {n for n in files(place) if n.endswith("/model.safetensors") and "new" in n} == set()
    assert [path for path in place.rglob(".*") if path.name.startswith((".new", ".model"))] == []


@pytest.mark.parametrize("verb", ["generate", "eval", "data"])
def test_a_full_disk_under_rows(place, capsys, monkeypatch, verb):
    write_rows(row(answer="red"))
    words = {
        "generate": ["generate", "model", "--input", "in.jsonl", "--output", "out/o.jsonl"],
        "eval": [
            "eval",
            "model",
            "--data",
            "in.jsonl",
            "--scorer",
            "exact",
            "--json",
            "out/r.json",
        ],
        "data": ["data", "world", "out", "--pictures", "2", "--questions", "2"],
    }[verb]
    write_text = Path.write_text

    def full(path, *args, **keywords):
        if "out" in path.parts and path.name != "run.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write_text(path, *args, **keywords)

    monkeypatch.setattr(Path, "write_text", full)
    says = ["out/", "No space left on device", "free some space"]
    refused(capsys, [*words, *(SHORT if verb != "data" else [])], 4, says)
    assert list(place.rglob(".*.partial")) == []


@pytest.mark.parametrize("verb", ["chat", "generate", "eval", "train"])
def test_a_device_that_is_not_there(place, capsys, monkeypatch, verb):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_records()
    write_recipe()
    write_rows(row(answer="red"))
    words = {
        "chat": ["chat", "model", "--ask", "what?"],
        "generate": ["generate", "model", "--input", "in.jsonl", "--output", "out.jsonl"],
        "eval": ["eval", "model", "--data", "in.jsonl", "--scorer", "exact", "--json", "r.json"],
        "train": ["train", "my.yaml", "--out", "run"],
    }[verb]
    refused(capsys, [*words, "--device", "cuda"], 4, ["cuda"])


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "unreachable"])
@pytest.mark.parametrize("verb", ["chat", "train"])
def test_hub_ids_without_a_hub(place, capsys, monkeypatch, free_port, offline, verb):
    url = f"http://127.0.0.1:{free_port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    write_records()
    write_recipe()
    words = {
        "chat": ["chat", "tiny/llava", "--ask", "what?"],
        "train": ["train", "my.yaml", "model.from=tiny/llava", "--out", "run"],
    }[verb]
    refused(capsys, words, 4, ["tiny/llava", "the hub cannot be reached", "HF_HUB_OFFLINE"])
