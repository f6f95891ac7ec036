"""Where a run's numbers go: rows, console lines, event files, the page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from retinue.train.evaluator import Answer
from retinue.train.meter import Meter
from retinue.train.page import curve, picture, render_page
from retinue.train.sinks import SINKS
from retinue.train.sinks.console import ConsoleSink
from retinue.train.sinks.jsonl import JsonlSink, read_rows
from retinue.train.trainer import Update


def row(step: int, loss: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "stage": "a", "step": step, "loss": loss, **more}


def update(step: int, loss: float) -> Update:
    return Update(
        step=step, loss=loss, lr=0.1 * step, grad_norm=2.0, tokens=50, supervised=10, views=1
    )


def test_rows_average_updates_and_tell_the_speed() -> None:
    now = 0.0

    def clock() -> float:
        return now

    meter = Meter("a", first=10, total=8, clock=clock)
    meter.add(update(1, 3.0))
    now = 1.0
    meter.add(update(2, 1.0))
    now = 2.0
    found = meter.row()
    assert (found["step"], found["loss"], found["tokens"], found["lr"]) == (12, 2.0, 100, 0.2)
    assert found["tokens_per_s"] == pytest.approx(50)
    assert found["eta"] == pytest.approx(6.0)
    assert meter.totals()["supervised"] == 20


def test_jsonl_forgets_what_a_resumed_run_will_say_again(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path)
    for step in (1, 2, 3):
        sink.log(row(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    sink.forget(2)
    sink.log(row(3, loss=0.5))
    found = read_rows(tmp_path / "metrics.jsonl")
    assert [(one["step"], one["loss"]) for one in found] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_console_prints_some_lines_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("retinue"), "propagate", False)
    sink = ConsoleSink(tmp_path)
    sink.stage("align", first=5, last=105)
    for step in range(6, 106):
        sink.log(row(step, lr=1e-3, tokens_per_s=1234.0, eta=9.0))
    sink.log({"kind": "validation", "stage": "align", "step": 105, "loss": 0.25})
    sink.close()
    lines = capsys.readouterr().err.strip().splitlines()
    assert 20 <= len(lines) <= 23
    assert lines[0] == "align 1/100  loss 1.0000  lr 1.00e-03  1,234 tokens/s  9 s left"
    assert lines[-1] == "align 100/100  validation loss 0.2500"


def test_console_draws_progress_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = ConsoleSink(tmp_path)
    sink.live = True
    sink.stage("align", first=0, last=4)
    sink.log(row(2, lr=1e-3, tokens_per_s=10.0))
    assert sink.progress is not None
    (task,) = sink.progress.tasks
    assert (task.completed, task.total) == (2, 4)
    assert "loss 1.0000" in task.fields["numbers"]
    sink.close()
    assert "align" in capsys.readouterr().err


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    sink = SINKS.get("tensorboard")(tmp_path)
    sink.log(row(1, lr=1e-3))
    sink.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_curve_is_within_its_box_and_marks_validation() -> None:
    rows = [row(n, 5.0 / n) for n in range(1, 30)]
    rows.append({"kind": "validation", "stage": "a", "step": 15, "loss": 9.0})
    drawn = curve(rows)
    points = [p.split(",") for p in drawn.split('points="')[1].split('"')[0].split()]
    assert len(points) == 29
    assert all(0 <= float(x) <= 760 and 0 <= float(y) <= 280 for x, y in points)
    assert drawn.count("<circle") == 1
    assert "No update" in curve([])


def test_page_escapes_and_embeds(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (900, 300), "red").save(path)
    page = render_page(
        title="a<b",
        rows=[row(1)],
        tables={},
        metrics={"loss": 0.123456},
        answers=[Answer(question="<q>", answer="&", pictures=[str(path)])],
        skipped=["s1: broken"],
        recipe="seed: 1",
    )
    for part in ("<title>a&lt;b</title>", "&lt;q&gt;", "&amp;", "0.1235", "s1: broken", "seed: 1"):
        assert part in page, part
    assert "<script" not in page
    missing = picture("nowhere.png")
    assert "nowhere.png" in missing
    assert "<img" not in missing
