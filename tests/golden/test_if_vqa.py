"""The few-shot evaluation's VQA accuracy, with the reader and the scorer of VQA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import cases, compared

from retinue.eval.benchmark import breakdown, task_figures
from retinue.eval.predictions import from_saved, read_predictions
from retinue.eval.runner import evaluate
from retinue.eval.scorers.vqa import vqa_answer
from retinue.eval.task import Task, question_of

pytestmark = pytest.mark.golden

CASES = cases("instruct-flamingo", "eval*", having="vqa/expected.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_vqa_accuracy(case: Path) -> None:
    folder = case / "vqa"
    wanted = json.loads((folder / "expected.json").read_text("utf-8"))
    for raw, made in wanted["normalised"].items():
        assert vqa_answer(raw) == made
    reader = {
        "kind": "vqa",
        "questions": "questions.json",
        "annotations": "annotations.json",
        "picture": "{image_id}.jpg",
    }
    fields = {"about": "case", "source": "case", "prompt": "{question}", "scorer": "vqa"}
    task = Task.parse({**fields, "reader": reader}, where="case")
    questions = [question_of("case", task, item) for item in task.reader.items(folder)]
    missed: list[int] = []
    saved = read_predictions(folder / "results.json")
    rows = list(evaluate(from_saved(saved, questions, missed.append), questions))
    assert not missed
    scores = {row["id"]: round(100 * row["score"], 2) for row in rows}
    assert scores == wanted["per_question"]
    assert round(100 * task_figures(rows, task)["score"], 2) == wanted["overall"]
    groups = breakdown(rows)
    for fact, name in (("answer_type", "perAnswerType"), ("question_type", "perQuestionType")):
        found = {value: round(100 * own["score"], 2) for value, own in groups[fact].items()}
        assert found == wanted[name]
    compared(case)
