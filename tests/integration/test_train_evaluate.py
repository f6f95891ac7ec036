"""Questions asked while a run trains: rows, results, the best model, the page, going on."""

import json
import multiprocessing

import pytest

import tiny_recipe
import tiny_run
from retinue.cli.asking import asker
from retinue.cli.main import run as retinue
from retinue.core.errors import ConfigError, DataError
from retinue.hub.load import load
from retinue.train.sinks.jsonl import read_rows
from retinue.train.spec import EvaluateSpec, TrainSpec
from tiny import picture, tiny_model
from tiny_judge import Scores, killed, train
from tiny_run import KILL, write_data

LOSS = ("step", "loss", "grad_norm")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def rows_of(folder, kind):
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]


def test_the_best_model_is_kept_and_training_is_not_disturbed(root, tmp_path):
    judge = Scores([0.2, 0.7, 0.5, 0.7, 0.1])
    train(root, tmp_path / "asked", judge)
    # Two stages of 3 and 6 updates: 2 and 3 of the first, 2, 4 and 6 of the second.
    said = rows_of(tmp_path / "asked", "evaluation")
    assert [(row["step"], row["stage"], row["score"]) for row in said] == [
        (2, "align", 0.2),
        (3, "align", 0.7),
        (5, "tune", 0.5),
        (7, "tune", 0.7),
        (9, "tune", 0.1),
    ]
    best = json.loads((tmp_path / "asked" / "best" / "best.json").read_text("utf-8"))
    assert best == {"step": 3, "stage": "align", "metric": "score", "score": 0.7}
    model, _ = load(tmp_path / "asked" / "best")
    weight = next(iter(model.connector.state_dict().values()))
    assert float(weight.float().sum()) == judge.seen[1] != judge.seen[-1]
    files = sorted(path.name for path in (tmp_path / "asked" / "evaluation").iterdir())
    assert files[:2] == ["step-00000002.json", "step-00000002.rows.jsonl"]
    assert len(files) == 10
    page = (tmp_path / "asked" / "report.html").read_text("utf-8")
    assert "Scores on the way" in page
    assert "<b>0.7000</b>" in page
    record = json.loads((tmp_path / "asked" / "run.json").read_text("utf-8"))
    assert record["metrics"]["score"] == 0.1
    tiny_run.run(root, tmp_path / "plain")
    for own, plain in zip(
        rows_of(tmp_path / "asked", "train"), rows_of(tmp_path / "plain", "train"), strict=True
    ):
        assert {key: own[key] for key in LOSS} == {key: plain[key] for key in LOSS}


def test_the_page_is_there_early_and_the_best_outlives_a_kill(root, tmp_path):
    folder = tmp_path / "run"
    child = multiprocessing.get_context("spawn").Process(target=killed, args=(root, folder))
    child.start()
    child.join(120)
    assert child.exitcode == -KILL
    assert "Scores on the way" in (folder / "report.html").read_text("utf-8")
    begun = rows_of(folder, "evaluation")
    assert len(begun) >= 2
    left = [0.4] * (5 - len(begun) + 1)
    train(root, folder, Scores(left))
    best = json.loads((folder / "best" / "best.json").read_text("utf-8"))
    assert (best["step"], best["score"]) == (3, 0.9)
    assert [row["step"] for row in rows_of(folder, "evaluation")] == [2, 3, 5, 7, 9]


def test_a_best_model_of_another_run_is_forgotten(root, tmp_path):
    folder = tmp_path / "run"
    train(root, folder, Scores([0.9] * 5))
    import shutil

    shutil.rmtree(folder / "checkpoints")
    train(root, folder, Scores([0.1, 0.2, 0.1, 0.1, 0.1]))
    best = json.loads((folder / "best" / "best.json").read_text("utf-8"))
    assert (best["step"], best["score"]) == (3, 0.2)


def test_metric_and_no_best(root, tmp_path):
    train(root, tmp_path / "none", Scores([0.5] * 5), best=False)
    assert not (tmp_path / "none" / "best").exists()
    with pytest.raises(ConfigError, match="no metric 'f1'"):
        train(root, tmp_path / "odd", Scores([0.5] * 5), metric="f1")


def questions(folder):
    """Three questions about one picture as rows, and as a benchmark of one's own."""
    picture(1).save(folder / "p.png")
    rows = []
    for n, answer in enumerate(("red", "blue", "two")):
        said = [{"type": "image", "image": "p.png"}, {"type": "text", "text": f"what {n}?"}]
        rows.append({"id": str(n), "messages": [{"role": "user", "content": said}]})
        rows[-1] |= {"answer": answer, "task": "count" if n == 2 else "colour"}
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "mine.yaml").write_text(
        "about: Mine.\nsource: mine\nreader: {kind: rows, file: rows.json, references: answer}\n"
        'prompt: "{question}"\nscorer: exact\nrank: {names: [red, blue]}\n',
        "utf-8",
    )
    told = [{"id": n, "image": "p.png", "question": "what?", "answer": "red"} for n in range(3)]
    (folder / "rows.json").write_text(json.dumps(told), "utf-8")
    return path


def test_a_recipe_asks_through_the_runner_of_eval(tmp_path, capsys):
    recipe = tiny_recipe.shrink("llava15-7b/sft", tmp_path)
    path, out = questions(tmp_path), tmp_path / "run"
    told = [f"train.evaluate.data={path}", "train.evaluate.scorer=exact"]
    told += ["train.evaluate.every=1", "train.evaluate.max_new_tokens=3"]
    assert retinue(["train", str(recipe), *told, "--out", str(out), "--device", "cpu"]) == 0
    said = rows_of(out, "evaluation")
    assert [row["step"] for row in said] == [1, 2]
    assert {"score", "colour", "count"} <= set(said[0])
    document = json.loads((out / "evaluation" / "step-00000002.json").read_text("utf-8"))
    assert document["counts"]["questions"] == 3
    capsys.readouterr()
    steps = [str(out / "evaluation" / f"step-0000000{n}.json") for n in (1, 2)]
    assert retinue(["compare", *steps, "--json"]) == 0
    assert {one["task"] for one in json.loads(capsys.readouterr().out)} == {"colour", "count"}
    assert "data:image/png" in (out / "report.html").read_text("utf-8")
    load(out / "best")


def test_a_benchmark_whose_answers_are_ranked(tmp_path):
    questions(tmp_path)
    ask = asker(EvaluateSpec(task=str(tmp_path / "mine.yaml"), root=tmp_path, limit=2))
    model, processor = tiny_model()
    found = ask(model, processor)
    assert found.document["benchmark"]["name"] == "mine"
    assert [set(row["ranking"]) for row in found.rows] == [{"red", "blue"}] * 2
    assert found.metrics["score"] == found.document["benchmark"]["score"]
    assert {answer.reference for answer in found.answers} == {"red"}


def test_a_wrong_file_is_told_before_training(tmp_path):
    path = questions(tmp_path)
    with pytest.raises(DataError, match="no scorer"):
        asker(EvaluateSpec(data=path))
    assert asker(None) is None
    stage = {"name": "s", "trainable": {"**": "full"}, "steps": 1, "global_batch": 1}
    stage["optim"] = {"lr": 1}
    for odd, says in (({}, "either data or task"), ({"task": "a", "scorer": "exact"}, "its own")):
        with pytest.raises(ConfigError, match=says):
            TrainSpec.parse({"stages": [stage], "evaluate": odd}, where="train")
