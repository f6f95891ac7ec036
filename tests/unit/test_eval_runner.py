"""Questions, judgement, figures: everything of an evaluation but the model."""

import json
import math
from dataclasses import dataclass, field

import pytest

from retinue.core.errors import ConfigError, DataError
from retinue.decode.rows import RowFile
from retinue.eval.questions import check_references, read_questions
from retinue.eval.results import baseline, by_task, failures, figures, result, stderr, table
from retinue.eval.runner import evaluate
from tiny import picture


@dataclass
class Said:
    number: int
    text: str
    tokens: list = field(default_factory=lambda: [1, 2])
    finish: str = "stop"


def says(words, *, without=()):
    """A backend: the sample's id decides its answer; samples in `without` have none."""

    def predict(samples):
        for number, sample in enumerate(samples):
            if sample.id not in without:
                yield Said(number, words[sample.id])

    return predict


def row(id, question="q?", **fields):
    return {"id": id, "messages": [{"role": "user", "content": question}], **fields}


def write(path, rows):
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), "utf-8")
    return path


ROWS = [
    row("a", answer="red", task="colour"),
    row("b", references=["two", "2"], task="count"),
    row("c", answer=3, task="count"),
    row("d", answer="blue", task="colour"),
]
WORDS = {"a": "Red.", "b": "2", "c": "four", "d": "green"}


def test_what_counts_as_right(tmp_path):
    talk = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "no"},
    ]
    rows = [*ROWS, {"id": "e", "messages": talk}, {"id": "f", "messages": talk, "answer": "never"}]
    found = read_questions(write(tmp_path / "mine.jsonl", rows), scorer="exact")
    references = [item.references for item in found]
    assert references == [("red",), ("two", "2"), ("3",), ("blue",), ("no",), ("never",)]
    assert [item.task for item in found] == ["colour", "count", "count", "colour", "mine", "mine"]
    assert [message.text for message in found[4].sample.messages] == ["one?", "yes", "two?"]
    assert [
        item.sample.id for item in read_questions(tmp_path / "mine.jsonl", scorer="exact", limit=2)
    ] == ["a", "b"]


def test_llava_rows_are_questions_too(tmp_path):
    picture(1).save(tmp_path / "p.png")
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    path = tmp_path / "l.json"
    path.write_text(json.dumps([{"id": "x", "image": "p.png", "conversations": said}]), "utf-8")
    (found,) = read_questions(path, scorer="contains")
    assert found.references == ("a dog",)
    assert found.sample.media[0].source == str(tmp_path / "p.png")


def test_the_command_line_scorer_wins_over_the_rows(tmp_path):
    path = write(tmp_path / "d.jsonl", [row("a", answer="x", scorer="contains")])
    assert read_questions(path)[0].scorer == "contains"
    assert read_questions(path, scorer="exact")[0].scorer == "exact"


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("b"), r"d\.jsonl:2.*nothing says what is right"),
        (row("b", references=[]), r"d\.jsonl:2.*nothing says what is right"),
        (row("b", answer="x"), r"d\.jsonl:2.*no scorer.*--scorer"),
        (row("b", answer="x", scorer="exat"), r"d\.jsonl:2.*did you mean 'exact'"),
        ({"id": "b", "answer": "x"}, r"d\.jsonl:2.*messages: missing"),
        (
            {"id": "b", "answer": "x", "messages": [{"role": "assistant", "content": "x"}]},
            r"d\.jsonl:2.*no question",
        ),
    ],
    ids=["reference", "references", "scorer", "unknown scorer", "messages", "question"],
)
def test_a_row_that_lacks_something_is_named_with_its_line(tmp_path, bad, says):
    path = write(tmp_path / "d.jsonl", [row("a", answer="x", scorer="exact"), bad])
    with pytest.raises(DataError, match=says):
        read_questions(path)


def test_unknown_scorer_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'contains'"):
        read_questions("anything.jsonl", scorer="contain")


def test_references_that_a_scorer_cannot_read_are_found_before_asking(tmp_path):
    path = write(tmp_path / "d.jsonl", [row("a", answer="no box", scorer="iou")])
    with pytest.raises(DataError, match=r"d\.jsonl:1"):
        check_references(read_questions(path))

    def never(samples):
        raise AssertionError("the model was asked")

    with pytest.raises(DataError):
        evaluate(never, read_questions(path))


def test_rows_and_figures(tmp_path):
    questions = read_questions(write(tmp_path / "d.jsonl", ROWS), scorer="exact")
    rows = evaluate(says(WORDS), questions)
    assert [(item["id"], item["score"]) for item in rows] == [
        ("a", 1.0),
        ("b", 1.0),
        ("c", 0.0),
        ("d", 0.0),
    ]
    assert rows[1]["references"] == ["two", "2"]
    assert (rows[1]["question"], rows[1]["text"], rows[1]["tokens"]) == ("q?", "2", [1, 2])
    document = result(rows, questions=questions, settings={"seed": 0}, with_baseline=True)
    assert document["metrics"]["score"] == document["metrics"]["exact"] == 0.5
    assert document["tasks"]["colour"]["score"] == 0.5
    assert document["tasks"]["count"]["count"] == 2
    # Of four answers in two tasks all differ: a constant gets one of each two.
    assert document["metrics"]["baseline"] == 0.5
    assert document["counts"] == {"questions": 4, "answered": 4, "skipped": 0, "tokens": 8}
    assert {"retinue", "torch", "transformers"} <= set(document["versions"])
    header, lines = table(document)
    assert header == ["task", "scorer", "count", "score", "±", "baseline"]
    assert lines[-1][:4] == ["all", "", 4, 0.5]
    assert [line[0] for line in lines] == ["colour", "count", "all"]
    assert [item["id"] for item in failures(rows, count=1)] == ["c"]


def test_baseline_weighs_tasks_by_their_questions(tmp_path):
    rows = [row(str(n), answer="red", task="x") for n in range(3)] + [
        row("z", answer="1", task="y")
    ]
    rows[0]["answer"] = "blue"
    found = baseline(read_questions(write(tmp_path / "d.jsonl", rows), scorer="exact"))
    assert found == pytest.approx({"x": 2 / 3, "y": 1.0, "all": 3 / 4})


def test_standard_error_of_a_mean():
    assert stderr([1.0, 0.0, 1.0, 0.0]) == pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))
    assert stderr([1.0]) == stderr([]) == 0.0


def test_metrics_that_only_some_rows_have():
    rows = [
        {"task": "t", "scorer": "a", "score": 1.0, "scores": {"exact": 1.0}},
        {"task": "t", "scorer": "b", "score": 0.5, "scores": {"word_f1": 0.5, "exact": 0.0}},
    ]
    assert figures(rows)["metrics"] == {"exact": 0.5, "word_f1": 0.5}
    assert by_task(rows)["t"]["scorer"] == "a+b"


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_rows(tmp_path):
    questions = read_questions(write(tmp_path / "d.jsonl", ROWS), scorer="exact")
    straight = RowFile(tmp_path / "straight.jsonl")
    evaluate(says(WORDS), questions, rows=straight)
    asked = []

    def breaks(after):
        def predict(samples):
            for number, sample in enumerate(samples):
                if number == after:
                    raise KeyboardInterrupt
                asked.append(sample.id)
                yield Said(number, WORDS[sample.id])

        return predict

    path = tmp_path / "rows.jsonl"
    for after in (1, 0, 2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(breaks(after), questions, rows=RowFile(path))
        with path.open("ab") as file:
            file.write(b'{"id": "torn')
    rows = evaluate(breaks(9), questions, rows=RowFile(path))
    assert asked == ["a", "b", "c", "d"]
    assert path.read_bytes() == straight.path.read_bytes()
    assert rows == [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_samples_without_an_answer_have_no_row(tmp_path):
    questions = read_questions(write(tmp_path / "d.jsonl", ROWS), scorer="exact")
    steps = []
    rows = evaluate(says(WORDS, without={"b"}), questions, progress=steps.append)
    assert [item["id"] for item in rows] == ["a", "c", "d"]
    assert steps == [1, 3, 4]
