"""Scorers of boxes, poses and relations against literal cases."""

from __future__ import annotations

import math

import pytest

from retinue.eval.scorers.pose import AREA, SIGMAS, oks
from retinue.eval.scorers.regions import average_precision, det, grounded, iou
from retinue.eval.scorers.relations import relations


@pytest.mark.parametrize(
    ("prediction", "value"),
    [
        ("[0.1,0.2,0.3,0.4]", 1.0),
        ("It is [0.1,0.2,0.3,0.4].", 1.0),
        ("0.1,0.2,0.3,0.4]", 1.0),  # the opening bracket belonged to the prompt
        ("[0.2,0.2,0.4,0.4]", 1 / 3),
        ("[0.3,0.4,0.1,0.2]", 0.0),  # corners swapped: no box
        ("[0.1,0.2,0.3]", 0.0),
        ("no box", 0.0),
    ],
)
def test_iou(prediction: str, value: float) -> None:
    scores = iou(prediction, ["[0.1,0.2,0.3,0.4]"])
    assert scores["iou"] == pytest.approx(value)
    assert scores["iou50"] == float(value >= 0.5)


def test_iou_is_blind_to_the_convention() -> None:
    assert iou("[10 20 30 40]", ["[10 20 30 44]"])["iou"] == pytest.approx(20 / 24)


def test_average_precision_literals() -> None:
    a, b, c = (0.0, 0.0, 1.0, 1.0), (2.0, 2.0, 3.0, 3.0), (8.0, 8.0, 9.0, 9.0)
    assert average_precision([a, b], wanted=[a, b], threshold=0.5) == 1.0
    # one of two found: recall points 0.00..0.50 are 51 of 101
    assert average_precision([a], wanted=[a, b], threshold=0.5) == pytest.approx(51 / 101)
    # a false alarm first: precision 1/2 at recall 1
    assert average_precision([c, a], wanted=[a], threshold=0.5) == pytest.approx(0.5)
    # a duplicate is a false alarm, but after the hit it costs nothing
    assert average_precision([a, a], wanted=[a], threshold=0.5) == 1.0
    assert average_precision([], wanted=[], threshold=0.5) == 1.0
    assert average_precision([a], wanted=[], threshold=0.5) == 0.0


def test_det_averages_over_thresholds() -> None:
    # IoU 0.8: right at 0.50..0.80, seven of ten thresholds
    scores = det("[0,0,8,10]", ["[0,0,10,10]"])
    assert scores == {"ap": pytest.approx(0.7), "ap50": 1.0, "f1": 1.0}
    assert det("[0,0,10,10;50,50,60,60]", ["[0,0,10,10]"])["f1"] == pytest.approx(2 / 3)
    assert det("nothing", ["[0,0,10,10]"]) == {"ap": 0.0, "ap50": 0.0, "f1": 0.0}


def test_grounded_needs_phrase_and_box() -> None:
    reference = "<p>red square</p>[0,0,10,10] <p>blue ring</p>[20,20,30,30]"
    assert grounded(reference, [reference]) == {"grounded_f1": 1.0, "phrase_f1": 1.0}
    moved = "<p>red square</p>[0,0,10,10] <p>blue ring</p>[50,50,60,60]"
    assert grounded(moved, [reference]) == {"grounded_f1": 0.5, "phrase_f1": 1.0}
    renamed = "<p>red ring</p>[0,0,10,10]"
    assert grounded(renamed, [reference]) == {"grounded_f1": 0.0, "phrase_f1": 0.0}


def test_oks_follows_the_formula() -> None:
    reference = "<p>nose</p>[10,10] <p>left knee</p>[30,50]"
    assert oks(reference, [reference]) == {"oks": 1.0, "oks50": 1.0}
    area = AREA * 20 * 40
    away = math.exp(-(2.0**2) / (2 * area * (2 * SIGMAS["nose"]) ** 2))
    assert oks("nose [12,10] left knee [30,50]", [reference])["oks"] == pytest.approx(
        (1 + away) / 2
    )
    assert oks("left_knee [30,50]", [reference])["oks"] == pytest.approx(0.5)
    assert oks("", [reference]) == {"oks": 0.0, "oks50": 0.0}


def test_a_loose_joint_costs_less_on_a_hip_than_on_the_nose() -> None:
    reference = "nose[10 10] left hip[30 50]"
    nose = oks("nose[13 10] left hip[30 50]", [reference])["oks"]
    hip = oks("nose[10 10] left hip[33 50]", [reference])["oks"]
    assert nose < hip < 1


def test_relations_count_triples_once() -> None:
    reference = "red square left of blue ring; red square above star"
    assert relations("Red square above star; red square left of blue ring.", [reference]) == {
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
    }
    scores = relations("red square above star\nred square above star; a above b", [reference])
    assert scores == {"f1": 0.5, "precision": 0.5, "recall": 0.5}
    assert relations("", [reference])["f1"] == 0.0
