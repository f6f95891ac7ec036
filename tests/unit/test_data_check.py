"""check: every problem of every sample is found; the figures are right. show: the page is whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fake_processor import FakeProcessor
from retinue.core.errors import DataError
from retinue.data.check import check
from retinue.data.formats import open_format
from retinue.data.report import quantiles
from retinue.data.show import show_html
from retinue.data.spec import DataSpec
from retinue.types import Media, Message, Sample, Text


def row(name: str, question: str, answer: str | None, **more: object) -> dict[str, object]:
    turns = [{"from": "human", "value": question}]
    if answer is not None:
        turns.append({"from": "gpt", "value": answer})
    return {"id": name, "conversations": turns, **more}


@pytest.fixture
def folder(tmp_path: Path, draw) -> Path:  # type: ignore[no-untyped-def]
    draw(40, 30).save(tmp_path / "ok.png")
    draw(200, 160, seed=1).save(tmp_path / "cut.jpg")
    raw = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    rows = [
        row("good", "<image>\nwhat is it", "a red ball", image="ok.png"),
        row("text", "one two", "three"),
        row("pair", "<image> <image> q", "a", image=["gone.png", "cut.jpg"]),
        row("count", "q", "a", image="ok.png"),
        row("empty", "q", " "),
        row("text", "q", None),
        row("long", "w " * 30, "a"),
        row("long2", "q", "a " * 30),
    ]
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=1))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_every_problem_is_found(folder: Path, workers: int) -> None:
    spec = DataSpec(sources=[{"path": "d.json"}], max_tokens=20, workers=workers)
    calls: list[tuple[int, int]] = []
    report = check(
        spec,
        FakeProcessor(),
        root=folder,
        progress=lambda name: lambda done, total: calls.append((done, total)),
    )
    assert [(p.kind, p.index, p.id) for p in report.problems] == [
        ("picture", 2, "pair"),
        ("picture", 2, "pair"),
        ("placeholders", 3, "record 3"),
        ("empty answer", 4, "record 4"),
        ("no target", 5, "text"),
        ("truncation", 6, "long"),
    ]
    messages = [p.message for p in report.problems]
    assert "gone.png" in messages[0]
    assert "cut.jpg" in messages[1]
    assert "0 <image> for 1 image" in messages[2]
    assert f"{folder / 'd.json'}:" in messages[4]
    assert "leaves no target" in messages[5]
    assert (report.records, report.good, report.truncated) == (8, 3, 2)
    assert report.duplicates == ["text"]
    assert not report.ok
    assert calls[-1] == (8, 8)


def test_figures(folder: Path) -> None:
    rows = json.loads((folder / "d.json").read_text())[:2]
    (folder / "good.json").write_text(json.dumps(rows))
    report = check(DataSpec(sources=[{"path": "good.json"}]), FakeProcessor(), root=folder)
    assert report.ok
    assert (report.tokens["min"], report.tokens["max"], report.tokens["sum"]) == (3, 9, 12)
    assert report.targets["mean"] == 2
    assert (report.image_tokens["p50"], report.image_tokens["count"]) == (3, 1)
    assert report.pictures["sum"] == 1
    assert report.packing == {
        "budget": 9,
        "packs": 2,
        "samples_per_pack": 1,
        "packed": 12 / 18,
        "padded": 12 / 18,
    }


def test_headers_only_and_without_a_model(folder: Path) -> None:
    spec = DataSpec(sources=[{"path": "d.json"}])
    headers = check(spec, FakeProcessor(), root=folder, decode=False)
    assert sum(p.kind == "picture" for p in headers.problems) == 1
    bare = check(spec, root=folder)
    assert (bare.tokens, bare.packing) == ({}, {})
    assert sum(p.kind == "picture" for p in bare.problems) == 2


def test_unreadable_sources_are_listed_beside_good_ones(folder: Path) -> None:
    (folder / "broken.json").write_text('[{"messages": []}')
    spec = DataSpec(sources=[{"path": "broken.json"}, {"path": "d.json", "limit": 2}])
    report = check(spec, FakeProcessor(), root=folder)
    assert [p.kind for p in report.problems] == ["file"]
    assert "not closed by ']'" in report.problems[0].message
    assert (report.records, report.good) == (2, 2)


def test_report_prints_and_dumps(folder: Path) -> None:
    report = check(
        DataSpec(sources=[{"path": "d.json"}], max_tokens=20), FakeProcessor(), root=folder
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 of 8 samples are fit for training" in text
    assert "2 picture" in text
    assert "packing into 20 tokens" in text
    data = json.loads(json.dumps(report.json()))
    assert (data["ok"], data["num_problems"], data["good"]) == (False, 6, 3)
    assert data["sources"][0]["kinds"]["picture"] == 2


def test_quantiles_are_members_of_the_sample() -> None:
    found = quantiles(list(range(1, 101)))
    assert (found["p50"], found["p95"], found["p99"], found["mean"]) == (50, 95, 99, 50.5)
    assert quantiles([]) == {}


def test_show_marks_targets_pictures_and_errors(folder: Path) -> None:
    source = open_format(folder / "d.json")

    def samples() -> list[Sample | DataError]:
        found: list[Sample | DataError] = []
        for i in (0, 1, 2, 3):
            try:
                found.append(source[i])
            except DataError as error:
                found.append(error)
        return found

    page = show_html(samples(), FakeProcessor(), out=folder / "page.html", title="A & B")
    assert (folder / "page.html").read_text("utf-8") == page
    assert "<title>A &amp; B</title>" in page
    assert page.count("<article>") == 4
    assert page.count("data:image/jpeg;base64,") == 1
    assert "picture 1 × 3" in page
    assert page.count('class="t on"') == 1 + 3 + 1
    assert "<b>3</b> targets (33.3 %)" in page
    assert page.count('class="error"') == 2
    assert "0 &lt;image&gt; for 1 image" in page
    assert "http" not in page
    assert "<script" not in page


def test_show_escapes_markup_and_long_names() -> None:
    picture = Image.new("RGB", (4, 4))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    sample = Sample(
        id="<x>",
        messages=(
            Message(role="user", parts=(Text(text="<script>alert(1)</script>"),)),
            Message(role="assistant", parts=(Text(text="a"),)),
        ),
    )
    page = show_html([sample], FakeProcessor())
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    broken = Sample(id="b", messages=(Message(role="user", parts=(Media(source="none.png"),)),))
    assert "no such file" in show_html([broken], FakeProcessor())
