"""Every packaged benchmark reads its miniature, scores it, and says where its parts come from."""

import json
import pickle
import re
from pathlib import Path

import pytest

from miniatures import LAYOUTS, miniature
from retinue.cli.main import run
from retinue.core.errors import ConfigError, DataError
from retinue.core.paths import tasks
from retinue.eval.benchmark import reference_table, task_figures, with_benchmark
from retinue.eval.measures.captions import cider, tokens
from retinue.eval.page import render_page
from retinue.eval.predictions import Saved
from retinue.eval.questions import check_references
from retinue.eval.results import result
from retinue.eval.runner import evaluate
from retinue.eval.task import find, load_task, questions_of
from retinue.hub.elastic import make_elastic
from retinue.hub.save import save
from retinue.processor import Processor
from tiny import picture, tiny_model

SILENT = {"vqav2", "vizwiz", "mmvet", "llava-bench", "msvd", "msrvtt", "activitynet"}
SILENT |= {"docvqa-test", "infovqa-test", "mmmu-test"}
"""Benchmarks whose answers are not public, or judged elsewhere."""


def perfect(questions):
    """A model that knows every answer."""

    def predict(samples):
        for number, _ in enumerate(samples):
            wanted = questions[number].references
            yield Saved(text=wanted[0] if wanted else "dark red.", number=number)

    return predict


def read(name, root):
    folder = miniature(name, root)
    task = load_task(tasks()[name])
    assert task.place(root, name) == folder
    return task, folder, questions_of(name, task, folder)


def test_every_task_has_a_miniature_and_the_other_way_round():
    assert set(LAYOUTS) == set(tasks())


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_perfect_model_scores_full_marks(name, tmp_path):
    task, folder, questions = read(name, tmp_path)
    check_references(questions)
    rows = evaluate(perfect(questions), questions)
    assert len(rows) == len(questions) > 0
    document = with_benchmark(
        result(rows, questions=questions, settings={}), rows, name=name, task=task
    )
    own = document["benchmark"]
    if name in SILENT:
        assert own["score"] is None
    elif name in ("coco-captions", "flickr30k"):
        assert own["score"] > 4
    else:
        assert own["score"] == pytest.approx(400.0 if name == "mme" else 1.0)
        assert own["low"] <= own["score"] <= own["high"]
    assert own["pinned"]["prompt"] == task.prompt
    page = render_page(document, rows, questions)
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert not re.search(r'(src|href)="http', page)
    _, lines = reference_table([document])
    assert len(lines) == len(task.references)
    for sample in (question.sample for question in questions):
        for media in sample.media:
            if media.kind == "image" and isinstance(media.source, str):
                assert media.source.startswith(str(folder))
                assert "data:image/jpeg" in page


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_task_names_its_source_and_the_source_of_its_published_figures(name):
    task = load_task(tasks()[name])
    assert re.search(r"arXiv \d{4}\.\d{4,5}|https?://|retinue itself", task.source)
    for one in task.references:
        assert re.search(r"arXiv|model zoo|https?://", one.source), one


def texts(questions):
    return {question.sample.id: question.sample.messages[-1].text for question in questions}


def test_prompts_are_those_that_the_published_scores_stand_on(tmp_path):
    end = "\nAnswer the question using a single word or phrase."
    letter = "\nAnswer with the option's letter from the given choices directly."
    _, _, found = read("textvqa", tmp_path)
    assert texts(found)["5"] == f"\nWhat does it say?\nReference OCR token: STOP, GO{end}"
    _, _, found = read("textvqa-plain", tmp_path)
    assert texts(found)["5"] == f"\nWhat does it say?{end}"
    _, _, found = read("scienceqa", tmp_path)
    assert texts(found)["4"] == f"\nContext: Look.\nWhich?\nA. one\nB. two{letter}"
    assert texts(found)["9"] == f"Which?\nA. one\nB. two{letter}"
    assert not found[1].sample.media
    _, _, found = read("mmbench-cn", tmp_path)
    assert texts(found)["2"] == "\nLook.\nWhat?\nA. a\nB. b\nC. c\n请直接回答选项字母。"
    _, _, found = read("mme", tmp_path)
    assert texts(found)["existence/0001.jpg/0"] == f"\nIs it red?{end}"
    _, _, found = read("vizwiz", tmp_path)
    unsure = "When the provided information is insufficient, respond with 'Unanswerable'."
    assert texts(found)["VizWiz_0.jpg"] == f"\nWhat is this?\n{unsure}{end}"


def test_turned_options_turn_the_right_letter(tmp_path):
    task, _, found = read("mmbench-circular", tmp_path)
    assert [(q.sample.id, q.references[0]) for q in found] == [
        ("1", "B"),
        ("1-1", "A"),
        ("2", "A"),
        ("2-1", "C"),
        ("2-2", "B"),
    ]
    rows = evaluate(perfect(found), found)
    rows[1] = {**rows[1], "score": 0.0, "scores": {"choice": 0.0}}
    own = task_figures(rows, task)
    assert own["metrics"] == {"circular": 0.5, "vanilla": 0.8}


def test_interval_of_a_measure_draws_pictures_whole(tmp_path):
    task, _, found = read("mme", tmp_path)
    rows = evaluate(perfect(found), found)
    for row in rows[:2]:  # one picture's pair
        row["score"] = 0.0
    own = task_figures(rows, task)
    assert own["low"] <= own["score"] <= own["high"]
    assert own["low"] < own["high"]
    assert own == task_figures(rows, task)


def test_a_new_task_is_one_file(tmp_path):
    picture(1).save(tmp_path / "1.png")
    rows = [{"id": n, "image": "1.png", "question": f"q{n}?", "answer": "yes"} for n in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "mine.yaml").write_text(
        "about: Mine.\nsource: https://example.org\n"
        "reader: {kind: rows, file: rows.json, references: answer}\n"
        'prompt: "{question} Yes or no?"\nscorer: exact\n',
        "utf-8",
    )
    (tmp_path / "said.json").write_text(json.dumps({"0": "Yes.", "1": "no", "2": "yes"}), "utf-8")
    out = tmp_path / "out" / "r.json"
    told = ["--tasks-from", str(tmp_path), "--tasks-root", str(tmp_path), "--json", str(out)]
    assert run(["eval", "--predictions", str(tmp_path / "said.json"), "mine", *told]) == 0
    document = json.loads(out.read_text("utf-8"))
    assert document["benchmark"]["score"] == pytest.approx(2 / 3)
    assert document["settings"]["task"]["prompt"] == "{question} Yes or no?"
    assert "q1?" in out.with_suffix(".html").read_text("utf-8")


def test_misspelt_task_reader_and_field(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'textvqa'"):
        find("textvga")
    path = tmp_path / "t.yaml"
    good = "about: x\nsource: y\nprompt: '{question}'\nscorer: exact\n"
    path.write_text(good + "reader: {kind: rws, file: a.json}\n", "utf-8")
    with pytest.raises(ConfigError, match="did you mean 'rows'"):
        load_task(path)
    path.write_text(good + "reader: {kind: rows, file: a.json, qestion: q}\n", "utf-8")
    with pytest.raises(ConfigError, match="did you mean 'question'"):
        load_task(path)
    path.write_text(good + "reader: {kind: rows, file: a.json}\nmeasure: mode\n", "utf-8")
    with pytest.raises(ConfigError, match="unknown measure 'mode'"):
        load_task(path)
    path.write_text(good + "reader: {kind: rows, file: a.json, question: q}\n", "utf-8")
    (tmp_path / "a.json").write_text('[{"id": 1, "image": "p.png", "text": "?"}]', "utf-8")
    with pytest.raises(DataError, match="no field 'q'"):
        questions_of("t", load_task(path), tmp_path)
    with pytest.raises(DataError, match=r"pope.*coco"):
        questions_of("pope", load_task(tasks()["pope"]), tmp_path / "pope")


def test_missing_files_are_told_with_their_place(tmp_path, capsys):
    said = tmp_path / "said.json"
    said.write_text('{"1": "a"}', "utf-8")
    command = ["eval", "--predictions", str(said), "gqa", "--tasks-root", str(tmp_path)]
    command += ["--json", str(tmp_path / "r.json")]
    assert run(command) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'gqa'}: the files of 'gqa' are not there" in line
    assert "testdev_balanced_questions.json" in line
    assert "https://cs.stanford.edu" in line
    (tmp_path / "gqa").mkdir()
    assert run(command) == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'gqa' / 'testdev_balanced_questions.json'}: a file of the bench" in line


def test_captions_as_cocos_own_evaluation_scores_them():
    """Figures of pycocoevalcap 1.2, recorded for these three captions."""
    rows = [
        {
            "text": "a red bird sits on the table",
            "references": [
                "a red bird on a table",
                "the bird sits on a green table near a cat",
            ],
        },
        {
            "text": "two dogs run",
            "references": ["two dogs run on the green grass", "dogs run"],
        },
        {
            "text": "a cat near a blue cat",
            "references": ["a blue cat sits near two birds", "the cat is blue"],
        },
    ]
    found = cider(rows)
    assert found.pop("cider") == pytest.approx(3.0561423161383754)
    wanted = [0.8749999999453126, 0.7337993856541887, 0.599429657403106, 7.44781978916786e-05]
    assert list(found.values()) == pytest.approx(wanted)


def test_cider_by_hand():
    """Two pictures: a gram of one alone has idf ln 2, a shared one 0."""
    rows = [
        {"text": "red dog runs fast", "references": ["red dog runs fast"]},
        {"text": "blue cat", "references": ["a green bird sings"]},
    ]
    # The first is its own reference: cosine 1 for each length of gram; the second shares nothing.
    assert cider(rows)["cider"] == pytest.approx(5.0)
    assert tokens("It's a dog, isn't it?") == ["it", "'s", "a", "dog", "is", "n't", "it"]


def test_boxes_of_refcoco_stand_on_the_padded_square(tmp_path):
    _, folder, questions = read("refcoco-plus-testA", tmp_path)
    assert [q.sample.messages[-1].text.rpartition(": ")[2] for q in questions] == [
        "red bar.",
        "left one.",
    ]
    # 40 x 30 on a square of 40: five rows above. Box 2..14, 3..14.
    assert questions[0].references == ("[0.050000,0.200000,0.350000,0.475000]",)
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Path("x")]))
    with pytest.raises(DataError, match="no plain data"):
        list(load_task(tasks()["refcoco-plus-testA"]).reader.items(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = tiny_model()
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    processor.save(place)
    assert isinstance(processor, Processor)
    return place


def test_eval_with_a_model_writes_results_pages_and_what_to_hand_in(folder, tmp_path, capsys):
    for name in ("pope", "gqa"):
        miniature(name, tmp_path)
    out = tmp_path / "out" / "r.json"
    command = ["eval", str(folder), "pope", "gqa", "--tasks-root", str(tmp_path)]
    assert run([*command, "--json", str(out), "--max-new-tokens", "3"]) == 0
    document = json.loads(out.read_text("utf-8"))
    assert list(document["tasks"]) == ["pope", "gqa"]
    own = document["tasks"]["gqa"]
    assert own["settings"]["changed"] == {"max_new_tokens": 3}
    assert own["settings"]["params"]["max_new_tokens"] == 3
    assert (out.parent / "r.pope.html").exists()
    assert len(json.loads((out.parent / "r.gqa.gqa.json").read_text("utf-8"))) == 2
    page = capsys.readouterr().out
    assert "SPHINX-1k" in page
    assert run(["compare", str(out), str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["task"], one["difference"], one["p"]) for one in found] == [
        ("pope", 0.0, 1.0),
        ("gqa", 0.0, 1.0),
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval"], "no model"),
        (["eval", "x"], "nothing to ask"),
        (["eval", "x", "pope", "--data", "y.jsonl"], "two kinds"),
        (["eval", "--predictions", "x.json"], "nothing to ask"),
    ],
)
def test_commands_that_ask_nothing_or_two_things(words, says, capsys):
    assert run(words) == 2
    assert says in capsys.readouterr().err


class Mortal:
    """A model that is killed at its n-th step."""

    def __init__(self, model, calls):
        self.model, self.left = model, calls

    def __getattr__(self, name):
        return getattr(self.model, name)

    def run(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.model.run(*args, **kwargs)


def test_killed_three_times_ends_with_the_same_files(tmp_path, monkeypatch):
    """Several tasks, killed in the first, between two, and in the last."""
    from retinue.cli import answering

    for name in ("pope", "gqa", "mme"):
        miniature(name, tmp_path)
    model, processor = tiny_model()
    lives = [10**9]
    monkeypatch.setattr(
        answering, "load_model", lambda *args, **kwargs: (Mortal(model, lives[-1]), processor)
    )
    command = ["eval", "x", "pope", "gqa", "mme", "--tasks-root", str(tmp_path)]
    command += ["--batch-size", "2", "--max-new-tokens", "4", "--no-page", "--json"]
    straight, broken = (tmp_path / name / "r.json" for name in ("straight", "broken"))
    assert run([*command, str(straight)]) == 0
    for steps in (7, 9, 6):
        lives.append(steps)
        assert run([*command, str(broken)]) == 130
    assert len(list(broken.parent.glob("r.*.json"))) > 1, "no task was finished in between"
    lives.append(10**9)
    assert run([*command, str(broken)]) == 0
    names = sorted(path.name for path in straight.parent.iterdir())
    assert sorted(path.name for path in broken.parent.iterdir()) == names
    for name in names:
        assert (broken.parent / name).read_bytes() == (straight.parent / name).read_bytes(), name


def test_a_benchmark_at_several_numbers_of_visual_tokens(tmp_path, capsys):
    model, processor = tiny_model(seed=3)
    make_elastic(model, processor, scales=[1, 4, 16])
    folder = save(model, processor, tmp_path / "elastic")
    miniature("gqa", tmp_path)
    out = tmp_path / "out" / "r.json"
    command = ["eval", str(folder), "gqa", "--tasks-root", str(tmp_path), "--json", str(out)]
    command += ["--max-new-tokens", "3", "--visual-tokens"]
    assert run([*command, "1,16", "--oracle"]) == 0
    document = json.loads(out.read_text("utf-8"))
    points = document["comparison"]["budgets"]
    assert [point["visual_tokens"] for point in points] == [1.0, 16.0]
    assert document["benchmark"]["name"] == "gqa"
    assert document["benchmark"]["score"] == points[-1]["score"]
    assert "oracle" in capsys.readouterr().out
    page = out.with_suffix(".html").read_text("utf-8")
    assert "<polyline" in page
    assert ">oracle</text>" in page
    assert run([*command, "4"]) == 0
    assert json.loads(out.read_text("utf-8"))["settings"]["visual_tokens"] == 4
    miniature("vizwiz", tmp_path)
    command[2] = "vizwiz"
    assert run([*command, "1,16"]) == 2
    assert "answers are public" in capsys.readouterr().err
