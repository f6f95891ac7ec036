"""data_config.yaml in a recipe: steps of one type, lengths measured anew when a file changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_processor import FakeProcessor
from retinue.core.errors import DataError
from retinue.data.dataset import open_dataset
from retinue.data.formats import open_format
from retinue.data.spec import DataSpec, SourceSpec


def dialog(name: str, question: str, answer: str) -> dict:
    turns = [{"from": "Human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns}


def write(folder: Path, **files: list[dict]) -> Path:
    lines = ["META:"]
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        lines += [f"- path: {name}.json", f"  type: {name}"]
    path = folder / "data_config.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_steps_are_of_one_type(tmp_path: Path) -> None:
    rows = {
        kind: [dialog(f"{kind}{n}", "what", "so " * (n + 1)) for n in range(4)] for kind in "xy"
    }
    write(tmp_path, **rows)
    spec = DataSpec(sources=[SourceSpec(path="data_config.yaml")], sampler="accessory")
    data = open_dataset(spec, FakeProcessor(), root=tmp_path)
    plan = data.schedule(global_batch=2).epoch(0)
    for step in plan.steps:
        kinds = {data.train.id(i)[0] for micro in step for i in micro}
        assert len(kinds) == 1


def test_a_changed_file_is_measured_anew(tmp_path: Path) -> None:
    path = write(tmp_path, x=[dialog("a", "what", "so")])
    spec = DataSpec(sources=[SourceSpec(path=path.name)])
    cache = tmp_path / "cache"
    first = open_dataset(spec, FakeProcessor(), root=tmp_path, cache=cache).train.sizes.tokens
    write(tmp_path, x=[dialog("a", "what", "so it is, after all")])
    second = open_dataset(spec, FakeProcessor(), root=tmp_path, cache=cache).train.sizes.tokens
    assert second[0] > first[0]


def test_errors_name_the_place(tmp_path: Path) -> None:
    path = write(tmp_path, x=[{"id": "a", "conversations": [{"from": "robot", "value": "hi"}]}])
    with pytest.raises(DataError, match="robot"):
        open_format(path)[0]
    path.write_text("META:\n- path: x.json\n  colour: red\n", encoding="utf-8")
    with pytest.raises(DataError, match="colour"):
        open_format(path)
