"""LLaVA's metric and submission scripts: every number and file they made, from our tasks."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cases import cases, compared

from retinue.eval.benchmark import breakdown, task_figures
from retinue.eval.measures.binary import binary, by_category, confusion
from retinue.eval.predictions import chunks, from_saved, read_predictions
from retinue.eval.readers import READERS
from retinue.eval.runner import evaluate
from retinue.eval.scorers.choice import igvlm_letter
from retinue.eval.scorers.judge import pair, relative
from retinue.eval.scorers.short import FAILED, gqa_answer, scienceqa_letter
from retinue.eval.scorers.vqa import answer_scores, evalai_answer
from retinue.eval.submissions import SUBMISSIONS
from retinue.eval.submissions.sheet import mmbench_rows
from retinue.eval.task import Task, question_of

pytestmark = pytest.mark.golden

CASES = cases("m3-llava", "eval*", having="outputs.json")
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def recorded(case: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case / "outputs.json").read_text("utf-8"))
    return found


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def only(case: Path, pattern: str) -> Path:
    """The one file of a case that matches."""
    (found,) = case.glob(pattern)
    return found


def rows_of(
    case: Path, reader: dict[str, Any], answers: str, *, scorer: str, measure: str = "mean"
) -> tuple[list[Any], Task]:
    """Rows of saved answers to the questions that a reader finds in the case."""
    task = Task.parse(
        {
            "about": "case",
            "source": "case",
            "reader": reader,
            "prompt": "{question}",
            "scorer": scorer,
            "measure": measure,
        },
        where="case",
    )
    questions = [question_of("case", task, item) for item in task.reader.items(case)]
    missed: list[int] = []
    saved = read_predictions(only(case, answers))
    return list(evaluate(from_saved(saved, questions, missed.append), questions)), task


def percent(text: str, name: str) -> str:
    found = re.search(rf"{re.escape(name)}: ([\d.]+)%", text)
    assert found, (name, text)
    return found[1]


@EACH
def test_texts(case: Path) -> None:
    wanted = recorded(case)
    for raw, made in wanted["evalai_normalise"]:
        assert evalai_answer(raw) == made
    for text, scores in wanted["parse_score"]:
        assert list(pair(text)) == scores
    for text, option in wanted["igvlm_multiple_choice"]:
        letter = igvlm_letter(text)
        names = ("zero", "one", "two", "three", "four")
        assert (names["ABCDE".index(letter)] if letter else "None") == option
    for row in wanted["split_list"]:
        parts = [list(part) for part in chunks(row["n"], row["k"])]
        assert parts == row["chunks"]
    compared(case)


@EACH
def test_textvqa(case: Path) -> None:
    wanted = recorded(case)
    annotations = only(case, "textvqa_ann*.json")
    for row, scores in zip(
        json.loads(annotations.read_text("utf-8"))["data"],
        wanted["textvqa_unique_scores"],
        strict=True,
    ):
        assert answer_scores(row["answers"]) == pytest.approx(scores)
    reader = {"kind": "textvqa", "annotations": annotations.name}
    rows, task = rows_of(case, reader, "textvqa_answers*.jsonl", scorer="textvqa")
    said = wanted["textvqa"]["stdout"]
    assert f"Samples: {len(rows)}\n" in said
    assert f"{100 * task_figures(rows, task)['score']:.2f}" == percent(said, "Accuracy")
    compared(case)


@EACH
def test_pope(case: Path) -> None:
    reader = {"kind": "pope", "labels": "pope", "questions": only(case, "pope_questions*").name}
    rows, task = rows_of(case, reader, "pope_answers*", scorer="pope", measure="pope")
    text = recorded(case)["pope"]["stdout"]
    groups = by_category(rows)
    for name, own in groups.items():
        part = text.partition(f"Category: {name}, # samples: {len(own)}\n")[2]
        counts = [int(number) for number in part.split("\n")[1].split("\t")]
        assert list(confusion(own).values()) == counts
        figures = binary(own)
        for metric, said in (
            ("accuracy", "Accuracy"),
            ("precision", "Precision"),
            ("recall", "Recall"),
            ("f1", "F1 score"),
            ("yes_ratio", "Yes ratio"),
        ):
            found = re.search(rf"^{said}: (\S+)$", part, re.MULTILINE)
            assert found
            assert figures[metric] == pytest.approx(float(found[1]), abs=1e-12)
    assert len(groups) == text.count("Category: ")
    each = [binary(own)["f1"] for own in groups.values()]
    assert task_figures(rows, task)["score"] == pytest.approx(sum(each) / len(each))
    compared(case)


@EACH
def test_scienceqa(case: Path) -> None:
    result = json.loads((case / "sqa_result.json").read_text("utf-8"))
    problems = json.loads((case / "problems.json").read_text("utf-8"))
    reader = {"kind": "scienceqa"}
    rows, _ = rows_of(case, reader, "sqa_answers*.jsonl", scorer="scienceqa")
    scores = {row["id"]: row["score"] for row in rows}
    # A problem without an answer counts as wrong.
    assert sum(scores.values()) == result["correct"]
    assert len(problems) == result["count"]
    assert 100 * sum(scores.values()) / result["count"] == pytest.approx(result["acc"])
    for number, text in result["outputs"].items():
        letter = scienceqa_letter(text)
        options = "ABCDE"[: len(problems[number]["choices"])]
        assert options.find(letter) == result["results"][number]
    told = json.loads((case / "sqa_output.json").read_text("utf-8"))
    multimodal = []
    for kind, listed in told.items():
        for row in listed:
            assert scienceqa_letter(row["pred"]) == row["parsed_ans"]
            assert scores.get(row["question_id"], 0.0) == float(kind == "correct")
            if row["is_multimodal"]:
                multimodal.append(scores.get(row["question_id"], 0.0))
            assert (row["pred"] == FAILED) == (row["question_id"] not in scores)
    said = recorded(case)["scienceqa"]["stdout"]
    assert percent(said, "IMG-Accuracy") == f"{100 * sum(multimodal) / len(multimodal):.2f}"
    compared(case)


@EACH
def test_seed(case: Path) -> None:
    reader = {"kind": "seed", "file": "seed.json"}
    rows, task = rows_of(case, reader, "seed_answers*.jsonl", scorer="letter")
    wanted = recorded(case)["seed"]
    # The original's summary fails where a type has no right answer; its upload is written before.
    said, groups = wanted["stdout"], {} if wanted["returncode"] else breakdown(rows)
    for fact, wording in (("type", "{}"), ("shown", "{} accuracy")):
        for name, own in groups.get(fact, {}).items():
            assert f"{100 * own['score']:.2f}" == percent(said, wording.format(name))
    if groups:
        total = task_figures(rows, task)["score"]
        assert f"{100 * total:.2f}" == percent(said, "Total accuracy")
    made = SUBMISSIONS.get("seed")(rows).decode()
    assert [json.loads(line) for line in made.splitlines()] == lines(only(case, "upload/seed*"))
    compared(case)


@EACH
def test_lists_to_hand_in(case: Path) -> None:
    wanted = recorded(case)
    saved = read_predictions(only(case, "gqa_merge*"))
    rows = [{"id": name, "text": saved.texts[name]} for name in saved.texts if "\n" not in name]
    made = json.loads(SUBMISSIONS.get("gqa")(rows))
    assert made == json.loads((case / "gqa_predictions.json").read_text("utf-8"))
    assert made[0]["prediction"] == gqa_answer(rows[0]["text"])

    questions = lines(only(case, "vizwiz_test*"))
    saved = read_predictions(only(case, "vizwiz_answers*"))
    rows = [{"id": row["image"], "text": saved.texts.get(row["question_id"])} for row in questions]
    assert json.loads(SUBMISSIONS.get("vizwiz")(rows)) == json.loads(
        only(case, "upload/vizwiz*").read_text("utf-8")
    )
    said = "total results: {}, total split: {}, error_line: {}\n"
    counts = (saved.count, len(questions), saved.broken)
    assert wanted["vizwiz"]["stdout"] == said.format(*counts)

    questions = lines(only(case, "vqav2/*.jsonl"))
    saved = read_predictions(only(case, "vqav2/answers/*/*/merge.jsonl"))
    ids = [str(row["question_id"]) for row in questions]
    rows = [{"id": name, "text": saved.texts.get(name)} for name in ids]
    assert json.loads(SUBMISSIONS.get("vqa")(rows)) == json.loads(
        only(case, "vqav2/answers_upload/*/*.json").read_text("utf-8")
    )
    counts = (saved.count, len(questions), saved.broken)
    assert wanted["vqav2"]["stdout"] == said.format(*counts)

    saved = read_predictions(only(case, "mmvet_answers*"))
    rows = [{"id": name, "text": saved.texts[name]} for name in saved.texts if "\n" not in name]
    assert json.loads(SUBMISSIONS.get("mmvet")(rows)) == json.loads(
        (case / "mmvet.json").read_text("utf-8")
    )
    compared(case)


@EACH
def test_mmbench_sheet(case: Path) -> None:
    wanted = recorded(case)["mmbench_xlsx"]
    reader = READERS.spec_of(
        {
            "kind": "rows",
            "file": only(case, "*.tsv").name,
            "id": "index",
            "encoded": True,
            "options": ["A", "B", "C", "D"],
        }
    )
    saved = read_predictions(only(case, "mmb/*.jsonl"))
    rows = [
        {"id": item.id, "text": saved.texts.get(item.id), "fields": item.row}
        for item in reader.items(case)
    ]
    columns, cells = mmbench_rows(rows)
    assert columns == wanted["columns"]
    assert cells == wanted["rows"]
    with zipfile.ZipFile(io.BytesIO(SUBMISSIONS.get("mmbench")(rows))) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
    written = re.findall(r"<t [^>]*>([^<]*)</t>|<v>(\d+)</v>", sheet)
    flat = [str(cell) for line in [columns, *cells] for cell in line if cell is not None]
    assert [one or other for one, other in written] == flat
    compared(case)


@EACH
def test_judged(case: Path) -> None:
    said = recorded(case)["llava_bench_summary"]["stdout"].splitlines()
    found = relative(lines(only(case, "reviews*")))
    made = [f"{name} {share} {one} {other}" for name, (share, one, other) in found.items()]
    assert made == [line for line in said if len(line.split(" ")) == 4]
    compared(case)
