"""SPHINX's metric helpers: numbers with tolerance, yes or no, VQA's normalisation, boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import cases, compared

from retinue.eval.scorers.regions import iou
from retinue.eval.scorers.short import exact_nodot, mme_answer, near
from retinue.eval.scorers.vqa import punctuation, vqa_answer
from retinue.media import boxes

pytestmark = pytest.mark.golden

CASES = cases("sphinx", "metrics*", having="outputs.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_helpers(case: Path) -> None:
    wanted = json.loads((case / "outputs.json").read_text("utf-8"))
    for target, found, right in wanted["relaxed_correctness_target_prediction_result"]:
        assert near(target, found) == right, (target, found)
    entries = wanted["exact_match"]["entries"]
    hits = [exact_nodot(row["answer"], [row["annotation"]])["exact"] for row in entries]
    assert sum(hits) / len(hits) == pytest.approx(wanted["exact_match"]["accuracy"])
    for text, said in wanted["parse_pred_ans"]:
        assert mme_answer(text) == said
    for row in wanted["vqa_normalise"]:
        assert punctuation(row["raw"]) == row["punct"]
        assert vqa_answer(row["raw"]) == row["final"]
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_boxes_on_the_padded_square(case: Path) -> None:
    """Its boxes are fractions of the longer side, ours are scored in the answer's own units."""
    for row in json.loads((case / "outputs.json").read_text("utf-8"))["rec_box"]:
        side = max(row["width"], row["height"])
        across, down = ((side - row[name]) / 2 for name in ("width", "height"))
        left, top, right, bottom = row["gt"]
        padded = [left + across, top + down, right + across, bottom + down]
        assert padded == pytest.approx(row["gt_padded"])
        found = boxes.parse_boxes(row["answer"]) or boxes.parse_boxes("[" + row["answer"])
        assert list(found[0] if found else (0, 0, 0, 0)) == pytest.approx(row["pred"])
        reference = ",".join(str(value / side) for value in padded)
        scores = iou(row["answer"], [f"[{reference}]"])
        assert scores["iou"] == pytest.approx(row["iou"], abs=1e-4)  # the case's own tolerance
        assert bool(scores["iou50"]) == row["correct"]
    compared(case)
