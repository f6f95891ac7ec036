"""eval --shots and generate over data sets, from the command line to their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retinue.cli.main import run
from retinue.hub.save import save
from retinue.world.make import write_split
from retinue.world.options import WorldOptions
from tiny import picture, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model folder, examples, questions): pictures with a made-up word each."""
    root = tmp_path_factory.mktemp("shots")
    model = str(save(*tiny_model(seed=3), root / "tiny"))
    options = WorldOptions(size=(32, 32), skip_shapes=6, shapes=8)
    for name, count in (("pool", 8), ("asked", 4)):
        write_split(root, name=name, num_pictures=count, seed=1, tasks=("called",), options=options)
    return model, root / "pool.json", root / "asked.jsonl"


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(place: Any, out: Path, *more: str) -> int:
    model, _, questions = place
    words = ["eval", model, "--data", str(questions), "--json", str(out), "--device", "cpu"]
    return run([*words, "--max-new-tokens", "3", *more])


@pytest.mark.parametrize("select", ["random", "rices"])
def test_examples_change_the_answers_and_stand_in_the_result(
    place: Any, select: str, tmp_path: Path
) -> None:
    pool = str(place[1])
    texts = {}
    for shots in (0, 2):
        out = tmp_path / f"{shots}.json"
        more = ["--shots", str(shots), "--shots-from", pool, "--select", select]
        assert asked(place, out, *more) == 0
        document = json.loads(out.read_text("utf-8"))
        rows = read(tmp_path / f"{shots}.rows.jsonl")
        texts[shots] = [row["text"] for row in rows]
        kept = document["settings"]["shots"]
        assert (kept is None) == (shots == 0)
        if kept:
            assert (kept["count"], kept["select"], kept["from"]) == (2, select, pool)
    assert texts[0] != texts[2]
    index = place[1].with_name("pool.json.rices.safetensors")
    assert index.exists() or select == "random"
    again = tmp_path / "again.json"
    more = ["--shots", "2", "--shots-from", pool, "--select", select]
    assert asked(place, again, *more) == 0
    rows = read(tmp_path / "again.rows.jsonl")
    assert [row["text"] for row in rows] == texts[2]


def test_two_examples_in_words_are_openflamingos_zero_shots(place: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    more = ["--shots", "0", "--text-shots", "2", "--shots-from", str(place[1])]
    assert asked(place, out, *more) == 0
    assert json.loads(out.read_text("utf-8"))["settings"]["shots"]["text"] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shots", "2"], "--shots without examples"),
        (["--shots-from", "POOL"], "--shots-from without --shots"),
        (["--shots", "2", "--text-shots", "2", "--shots-from", "POOL"], "stand in for 0 shots"),
        (["--shots", "9", "--shots-from", "POOL"], "9 shots"),
    ],
)
def test_options_that_do_not_fit(
    place: Any, more: list[str], words: str, tmp_path: Path, capsys: Any
) -> None:
    given = [str(place[1]) if word == "POOL" else word for word in more]
    assert asked(place, tmp_path / "r.json", *given) == 2
    assert words in capsys.readouterr().err


def test_a_config_of_data_sets(place: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.png")
    tag = "<img_path>a.png<img_path>"
    data = {
        "one": [{"input": f"{tag}what?", "output": "red"}, {"input": "and?", "output": "blue"}],
        "two": [{"instruction": "Say: ", "input": f"this {tag}", "output": "x"}],
    }
    config = []
    for name, rows in data.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        folder = "images" if "img_path" in str(rows) else ""
        config.append(
            {"dataset_name": name, "json_path": f"{name}.json", "img_dir": folder, "ratio": 1}
        )
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "predictions"
    words = ["generate", place[0], "--input", str(tmp_path / "config.json"), "--output", str(out)]
    words += ["--max-new-tokens", "3", "--device", "cpu", "--beams", "2", "--no-repeat-ngram", "3"]
    assert run(words) == 0
    rows = json.loads((out / "one.json").read_text("utf-8"))
    assert [row["input"] for row in rows] == ["<img_path>images/a.png<img_path>what?", "and?"]
    assert [row["target"] for row in rows] == ["red", "blue"]
    assert rows[0]["prompt"].count("<image>") == 1
    assert (out / "summary.md").read_text("utf-8").count("\n") == 4
    # an interrupted run: what is answered stays, the rest is asked
    lines = (out / "one.jsonl").read_text("utf-8").splitlines(keepends=True)
    marked = json.dumps({**json.loads(lines[0]), "output": "kept"}) + "\n"
    (out / "one.jsonl").write_text(marked)
    assert run(words) == 0
    again = json.loads((out / "one.json").read_text("utf-8"))
    assert again == [{**rows[0], "output": "kept"}, rows[1]]
    assert run([*words, "--length-penalty", "0"]) == 2
    assert "length_penalty was 1.0, is 0.0" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps([{"json_path": "one.json"}]))
    assert run([*words, "--restart"]) == 3
    assert "not a data set" in capsys.readouterr().err
