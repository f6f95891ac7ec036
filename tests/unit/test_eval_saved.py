"""Promised benchmarks, files to hand in, and answers that were saved before."""

import io
import json
import re
import zipfile

import pytest

from miniatures import miniature
from retinue.core.errors import DataError
from retinue.core.paths import tasks
from retinue.eval.predictions import from_saved, read_predictions
from retinue.eval.runner import evaluate
from retinue.eval.task import load_task, questions_of


def read(name, root):
    folder = miniature(name, root)
    task = load_task(tasks()[name])
    return task, folder, questions_of(name, task, folder)


PROMISED = {
    "vqav2",
    "okvqa",
    "vizwiz",
    "textvqa",
    "gqa",
    "scienceqa",
    "pope",
    "mme",
    "mmbench",
    "mmbench-cn",
    "mmbench-circular",
    "seed",
    "mmvet",
    "llava-bench",
    "refcoco-val",
    "refcoco-plus-testA",
    "refcocog-test",
    "coco-captions",
    "flickr30k",
    "hateful-memes",
    "imagenet",
    "docvqa",
    "chartqa",
    "ai2d",
    "infovqa",
    "ocrvqa",
    "vsr",
    "qbench",
    "mmmu",
    "gaokao-mm",
    "msvd",
    "msrvtt",
    "activitynet",
    "nextqa",
    "intentqa",
    "egoschema",
    "tinyworld",
}


def test_every_promised_benchmark_is_there():
    assert set(tasks()) >= PROMISED


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("coco-captions", [{"image_id": 0, "caption": "A dog."}, {"image_id": 1, "caption": ""}]),
        ("docvqa-test", [{"questionId": 11, "answer": "A dog."}, {"questionId": 12, "answer": ""}]),
        ("mmmu-test", {"test_Art_1": "A dog."}),
        ("seed", None),
    ],
)
def test_files_to_hand_in(name, wanted, tmp_path):
    task, folder, questions = read(name, tmp_path)
    body = task.submission_of(questions, {questions[0].sample.id: "A dog."}, folder)
    if wanted is not None:
        assert json.loads(body) == wanted
    else:
        rows = [json.loads(line) for line in body.decode().splitlines()]
        assert rows[0] == {"question_id": "1", "prediction": "A dog."}
        assert rows[1]["prediction"] == ""


def test_vqav2_upload_has_every_question_of_the_whole_test(tmp_path):
    task, folder, questions = read("vqav2", tmp_path)
    body = task.submission_of(questions, {"1": "Two dogs.", "2": "the  Cat"}, folder)
    assert json.loads(body) == [
        {"question_id": 1, "answer": "2 dogs"},
        {"question_id": 2, "answer": "cat"},
        {"question_id": 3, "answer": ""},
    ]


def test_mmbench_upload_is_a_spreadsheet(tmp_path):
    task, folder, questions = read("mmbench", tmp_path)
    body = task.submission_of(questions, {"1": "B"}, folder)
    assert body == task.submission_of(questions, {"1": "B"}, folder)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        sheet = archive.read("xl/worksheets/sheet1.xml").decode()
    assert re.findall(r"<t [^>]*>([^<]*)</t>", sheet)[:9] == [
        "index",
        "question",
        "A",
        "B",
        "C",
        "D",
        "answer",
        "prediction",
        "split",
    ]


def test_saved_answers_of_several_kinds(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"question_id": 1, "text": "a"}\n{"question_id": 2, "text": "b"}\n{brok', "utf-8"
    )
    saved = read_predictions(path)
    assert (dict(saved.texts), saved.count, saved.broken) == ({"1": "a", "2": "b"}, 2, 1)
    path.write_text('{"id": 1}\n{"id": 2}\n', "utf-8")
    with pytest.raises(DataError, match=r"p\.jsonl:1"):
        read_predictions(path)


def sample(place, said, asked, **doc):
    arguments = [f"{asked}\nAnswer briefly.", {"max_new_tokens": 4}, place, "t", "test"]
    found = {"doc_id": place, "doc": doc, "arguments": arguments, "resps": [[said]]}
    return {**found, "filtered_resps": [said]}


def test_samples_of_lmms_eval_are_matched_by_id_or_by_what_was_asked(tmp_path):
    """Another kit orders a benchmark in its own way and repeats ids over categories."""
    path = tmp_path / "samples.jsonl"
    _, _, questions = read("pope", tmp_path)
    rows = [
        sample(n, f"{category} {number}", "Is there a dog?", question_id=number, category=category)
        for n, (category, number) in enumerate(
            (category, number)
            for category in ("random", "adversarial", "popular")
            for number in (2, 1)
        )
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    saved = read_predictions(path)
    for number, question in enumerate(questions):
        assert saved.of(question, number) == question.sample.id.replace("/", " ")
    _, _, questions = read("gqa", tmp_path)
    asked = [question.sample.messages[0].text.strip().split("\n")[0] for question in questions]
    rows = [sample(n, f"a{n}", text) for n, text in enumerate(asked)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    saved = read_predictions(path)
    assert [saved.of(question, n) for n, question in enumerate(questions)] == ["a0", "a1"]
    assert saved.of(questions[1], 0) is None, "something else was asked there"
    metric = {"question_id": "202", "score": 1.0}  # what the command leaves in its file
    rows = [{"doc_id": 7, "input": "other", "filtered_resps": "left", "accuracy": metric}]
    path.write_text(json.dumps(rows), "utf-8")
    assert read_predictions(path).of(questions[1], 1) == "left"
    old = {"doc_id": 0, "input": asked[0].upper(), "resps": [["A"]]}
    path.write_text(json.dumps([old]), "utf-8")
    assert read_predictions(path).of(questions[0], 0) == "A"


def test_questions_without_an_answer_are_told_of(tmp_path):
    _, _, questions = read("gqa", tmp_path)
    path = tmp_path / "p.json"
    path.write_text('{"202": "left"}', "utf-8")
    missed = []
    predict = from_saved(read_predictions(path), questions, missed.append)
    rows = evaluate(predict, questions)
    assert [row["id"] for row in rows] == ["202"]
    assert missed == [0]
