"""The demo's reading of boxes: objects, coloured text, boxes for a segmenter, drawings; exact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cases import cases, compared
from PIL import Image

from retinue.compat.sphinx.boxes import draw_answer, parse_answer, pixel_boxes, show_mask

pytestmark = pytest.mark.golden

CASES = cases("sphinx", "*box*", having="outputs.json")
PICTURE = re.compile(r"in_(\d+)x(\d+)_(\d+)\.png")


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", paths, ids=lambda path: path.name)


def levels(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


@named(CASES)
def test_objects_and_text(case: Path) -> None:
    for record in json.loads((case / "outputs.json").read_text("utf-8")):
        found, text = parse_answer(record["text"])
        assert [[f.phrase, f.groups, f.colour] for f in found] == record["objects"]
        assert text == record["markdown"]
        for key, wanted in record.items():
            if key.startswith("sam_boxes_"):
                width, height = map(int, key.removeprefix("sam_boxes_").split("x"))
                assert pixel_boxes(found, (height, width)) == (wanted or [])
    compared(case)


@named(CASES)
def test_drawings(case: Path) -> None:
    records = json.loads((case / "outputs.json").read_text("utf-8"))
    pictures = [m for path in sorted(case.iterdir()) if (m := PICTURE.fullmatch(path.name))]
    assert pictures
    for match in pictures:
        found, _ = parse_answer(records[int(match[3])]["text"])
        key = f"error_{match[1]}x{match[2]}"
        wanted = case / match[0].replace("in_", "out_", 1)
        if key in records[int(match[3])] or not wanted.exists():
            continue
        drawn = draw_answer(Image.open(case / match[0]), found)
        assert np.array_equal(np.array(drawn), levels(wanted)), match[0]
    compared(case)


@named([case for case in CASES if (case / "mask_in.png").exists()])
def test_mask(case: Path) -> None:
    """The recorded mask is a rectangle; inside it every level must be the recorded one."""
    for path in case.glob("mask_*.png"):
        colour = path.stem.removeprefix("mask_")
        if colour == "in":
            continue
        before, wanted = levels(case / "mask_in.png"), levels(path)
        rows, cols = np.nonzero((before != wanted).any(-1))
        mask = np.zeros(before.shape[:2], dtype=bool)
        mask[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] = True
        shown = show_mask(Image.open(case / "mask_in.png"), mask, colour)
        assert np.array_equal(np.array(shown), wanted)
    compared(case)
