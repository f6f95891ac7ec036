"""SPHINX's evaluation helpers: relaxed numbers, equality, yes and no, VQA's words, boxes; exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import cases, compared

from retinue.eval.scorers import SCORERS
from retinue.eval.scorers.short import mme_answer, near
from retinue.eval.scorers.vqa import punctuation, words
from retinue.media import boxes

pytestmark = pytest.mark.golden

CASES = cases("sphinx", "*metric*", having="outputs.json")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_metrics(case: Path) -> None:
    outputs = json.loads((case / "outputs.json").read_text("utf-8"))
    for target, prediction, right in outputs["relaxed_correctness_target_prediction_result"]:
        assert near(target, prediction) == right, (target, prediction)
        assert SCORERS.get("relaxed")(prediction, [target]) == {"relaxed": float(right)}
    entries = outputs["exact_match"]["entries"]
    scores = [
        SCORERS.get("exact-nodot")(one["answer"], [one["annotation"]])["exact"] for one in entries
    ]
    assert sum(scores) / len(scores) == pytest.approx(outputs["exact_match"]["accuracy"])
    for text, said in outputs["parse_pred_ans"]:
        assert mme_answer(text) == said, text
    for record in outputs["vqa_normalise"]:
        assert punctuation(record["raw"]) == record["punct"]
        assert words(record["punct"]) == record["final"]
    for record in outputs["rec_box"]:
        check_box(record)
    compared(case)


def check_box(record: dict) -> None:
    """A referred box on the padded square: as read, as shifted, its overlap, right or not."""
    size = (record["height"], record["width"])
    square = boxes.from_pixels(tuple(record["gt"]), convention="square", size=size)
    side = max(size)
    assert [value * side for value in square] == pytest.approx(record["gt_padded"])
    found = boxes.parse_boxes(record["answer"]) or boxes.parse_boxes("[" + record["answer"])
    box = found[0] if found else (0.0, 0.0, 0.0, 0.0)
    assert list(box) == pytest.approx(record["pred"])
    assert boxes.iou(box, square) == pytest.approx(record["iou"], abs=1e-6)
    wanted = boxes.write(
        [tuple(record["gt"])], size=size, style=boxes.Style(convention="square", digits=9)
    )
    score = SCORERS.get("iou")(record["answer"], [wanted])
    assert score["iou"] == pytest.approx(record["iou"], abs=1e-6)
    assert bool(score["iou50"]) == record["correct"]
