"""GAOKAO-MM: extracted answers, points and accuracies, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import cases, compared

from retinue.eval.scorers import SCORERS
from retinue.eval.scorers.gaokao import SUBJECTS, accuracies, one_letter, several_letters

pytestmark = pytest.mark.golden

CASES = cases("llava-moss2", "*", having="gaokao_scoring.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_scoring(case: Path) -> None:
    recorded = json.loads((case / "gaokao_scoring.json").read_text("utf-8"))
    points = {}
    for file in recorded["files"]:
        several = SUBJECTS[file["keyword"]].several
        assert several == (file["type"] == "multi_choice")
        extract = several_letters if several else one_letter
        score = SCORERS.get("gaokao-several" if several else "gaokao")
        total = 0.0
        for row in file["example"]:
            found = extract(row["model_output"])
            assert ([found] if found else []) == row["model_answer"], row
            total += score(row["model_output"], row["standard_answer"])["gaokao"]
        assert total == file["correct_question_num"]
        points[file["keyword"]] = total
    found = accuracies(points)
    assert found.pop("overall") == recorded["accuracy"]
    assert found == {name: row["accuracy"] for name, row in recorded["subject"].items()}
    questions = {subject.name: subject.questions for subject in SUBJECTS.values()}
    for name, row in recorded["subject"].items():
        assert questions[name] == row["question_num"]
    assert sum(questions.values()) == recorded["question_num"]
    compared(case)
