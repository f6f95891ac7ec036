"""`data check --media-root`: a miniature of LLaVA's tree of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from retinue.cli.main import run
from retinue.core.errors import ConfigError
from retinue.data.spec import DataSpec
from retinue.data.tree import MediaTree, reencode

WANTED = (
    "coco/train2017/1.jpg",
    "coco/train2017/2.jpg",
    "gqa/images/3.jpg",
    "ocr_vqa/images/4.jpg",
    "ocr_vqa/images/5.jpg",
    "ocr_vqa/images/6.jpg",
    "textvqa/train_images/7.jpg",
    "vg/VG_100K/8.jpg",
    "vg/VG_100K_2/9.jpg",
)
THERE = {
    "coco/train2017/1.jpg": "JPEG",
    "gqa/images/3.jpg": "JPEG",
    "ocr_vqa/images/4.jpg": "JPEG",
    "ocr_vqa/images/5.png": "PNG",
    "ocr_vqa/images/6.gif": "GIF",
    "textvqa/train_images/7.jpg": "JPEG",
    "vg/VG_100K/8.jpg": "JPEG",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """mix.json and, below `pictures`, what there is of its tree."""
    for number, (name, kind) in enumerate(THERE.items()):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (30 * number, 90, 10)).save(path, format=kind)
    rows = [
        {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is it?"},
                {"from": "gpt", "value": "a box"},
            ],
        }
        for name in (*WANTED, WANTED[0])
    ]
    rows.append({"id": "text", "conversations": rows[0]["conversations"][1:] * 2})
    (tmp_path / "mix.json").write_text(json.dumps(rows), "utf-8")
    return tmp_path / "mix.json"


def counts(report: object) -> dict[str, tuple[int, int, int, int]]:
    rows = json.loads(json.dumps(report))["folders"]
    keys = ("wanted", "found", "other_suffix", "missing")
    return {row["folder"]: tuple(row[key] for key in keys) for row in rows}


def test_every_folder_is_counted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(data.parent / "pictures")
    assert run(["data", "check", str(data), "--media-root", root, "--json"]) == 3
    out = capsys.readouterr()
    assert counts(json.loads(out.out)) == {
        "coco": (2, 1, 0, 1),
        "gqa": (1, 1, 0, 0),
        "ocr_vqa": (3, 1, 2, 0),
        "textvqa": (1, 1, 0, 0),
        "vg": (2, 1, 0, 1),
    }
    assert "--fix-suffix" in out.err
    assert run(["data", "check", str(data), "--media-root", root]) == 3
    shown = capsys.readouterr().out
    assert "ocr_vqa" in shown
    assert "other suffix" in shown


def test_other_suffixes_are_written_anew(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data.parent / "pictures"
    words = ["data", "check", str(data), "--media-root", str(root), "--fix-suffix", "--json"]
    assert run(words) == 3  # two are missing still
    out = capsys.readouterr()
    assert counts(json.loads(out.out))["ocr_vqa"] == (3, 3, 0, 0)
    assert "2 of 2" in out.err
    for name in ("5", "6"):
        with Image.open(root / f"ocr_vqa/images/{name}.jpg") as picture:
            assert (picture.format, picture.size) == ("JPEG", (20, 16))
    assert (root / "ocr_vqa/images/5.png").exists()
    for name in ("coco/train2017/2.jpg", "vg/VG_100K_2/9.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    rows = [row for row in json.loads(data.read_text()) if row["id"] != "text"]
    data.write_text(json.dumps(rows))
    assert run(words) == 0


def test_what_is_no_picture_stays(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    assert reencode(tmp_path / "a.png", tmp_path / "a.jpg") is not None
    assert reencode(tmp_path / "a.png", tmp_path / "a.txt") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_a_tree_needs_a_root(data: Path) -> None:
    spec = DataSpec.parse({"sources": [{"path": str(data), "format": "llava"}]})
    with pytest.raises(ConfigError, match="media-root"):
        MediaTree(spec)
