"""Benchmarks whose answers are ranked: memes, classes of pictures; MMMU's pictures inside words."""

import csv
import json
import random

import pytest
from sklearn.metrics import roc_auc_score

from miniatures import miniature
from retinue.cli.main import run
from retinue.core.errors import ConfigError, DataError
from retinue.core.paths import tasks
from retinue.eval.measures.ranked import auc, certainty, top5
from retinue.eval.scorers.mmmu import chosen, mmmu, open_answers
from retinue.eval.task import load_task, questions_of
from retinue.hub.save import save
from retinue.types import Media, Text
from tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = tiny_model(seed=1)
    return save(model, processor, tmp_path_factory.mktemp("ranked") / "model")


def evaluate(folder, root, name, *more):
    out = root / "out" / f"{name}.json"
    command = ["eval", str(folder), name, "--tasks-root", str(root), "--json", str(out), *more]
    assert run(command) == 0
    rows = out.with_suffix(".rows.jsonl").read_text("utf-8").splitlines()
    return json.loads(out.read_text("utf-8")), [json.loads(line) for line in rows]


def test_memes_are_ranked_and_handed_in_with_probabilities(folder, tmp_path):
    miniature("hateful-memes", tmp_path)
    document, rows = evaluate(folder, tmp_path, "hateful-memes")
    assert [set(row["ranking"]) for row in rows] == [{"yes", "no"}] * 3
    assert all(row["text"] == next(iter(row["ranking"])) for row in rows)
    own = document["benchmark"]
    wanted = roc_auc_score(
        [row["references"][0] == "yes" for row in rows], [certainty(row, "yes") for row in rows]
    )
    assert own["metrics"]["roc_auc"] == own["score"] == pytest.approx(wanted)
    assert own["pinned"]["rank"] == {"names": ["no", "yes"], "norm": "mean"}
    sheet = tmp_path / "out" / "hateful-memes.hateful-memes.csv"
    handed = list(csv.DictReader(sheet.read_text("utf-8").splitlines()))
    assert [one["id"] for one in handed] == ["1", "2", "3"]
    for one, row in zip(handed, rows, strict=True):
        assert float(one["proba"]) == pytest.approx(certainty(row, "yes"), abs=1e-6)
        assert one["label"] == str(int(row["text"] == "yes"))


def test_classes_of_pictures(folder, tmp_path):
    place = miniature("imagenet", tmp_path)
    document, rows = evaluate(folder, tmp_path, "imagenet")
    assert [row["references"] for row in rows] == [["tench"], ["goldfish"], ["crane"], ["crane"]]
    assert [sorted(row["ranking"]) for row in rows] == [["crane", "goldfish", "tench"]] * 4
    metrics = document["metrics"]
    right = sum(row["text"] == row["references"][0] for row in rows) / 4
    assert (metrics["top1"], metrics["top5"]) == (right, 1.0)
    # Kaggle's layout: pictures in one folder, classes in a table.
    flat = tmp_path / "flat"
    flat.mkdir()
    picture = next(place.glob("val/n01443537/*"))
    (flat / "val").mkdir()
    (flat / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(picture.read_bytes())
    (flat / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 8 1 41 33 \n", "utf-8"
    )
    (flat / "LOC_synset_mapping.txt").write_bytes((place / "LOC_synset_mapping.txt").read_bytes())
    (item,) = load_task(tasks()["imagenet"]).reader.items(flat)
    assert (item.id, item.references) == ("ILSVRC2012_val_00000001", ("goldfish",))
    (flat / "LOC_synset_mapping.txt").write_text("n01440764\n", "utf-8")
    with pytest.raises(DataError, match="a class and its name"):
        list(load_task(tasks()["imagenet"]).reader.items(flat))


def test_ranking_at_several_numbers_of_visual_tokens(tmp_path, capsys):
    from retinue.hub.elastic import make_elastic

    model, processor = tiny_model(seed=3)
    make_elastic(model, processor, scales=[1, 16])
    folder = save(model, processor, tmp_path / "elastic")
    miniature("hateful-memes", tmp_path)
    out = tmp_path / "out" / "r.json"
    command = ["eval", str(folder), "hateful-memes", "--tasks-root", str(tmp_path)]
    command += ["--json", str(out), "--visual-tokens"]
    assert run([*command, "1,16"]) == 0
    document = json.loads(out.read_text("utf-8"))
    points = document["comparison"]["budgets"]
    assert [point["visual_tokens"] for point in points] == [1.0, 16.0]
    assert document["benchmark"]["metrics"]["roc_auc"] == document["benchmark"]["score"]
    capsys.readouterr()
    assert run([*command, "auto"]) == 2
    assert "ranks given answers" in capsys.readouterr().err


def test_examples_of_few_shot_questions_come_from_the_training_split(tmp_path):
    for name in ("hateful-memes", "imagenet"):
        place, task = miniature(name, tmp_path), load_task(tasks()[name])
        asked = {item.id for item in task.reader.items(place)}
        shots = list(task.train_reader(where=name).items(place))
        assert len(shots) == len(asked)
        assert not asked & {item.id for item in shots}
        assert all(item.references for item in shots)
    with pytest.raises(ConfigError, match="names no examples"):
        load_task(tasks()["pope"]).train_reader(where="pope")


@pytest.mark.parametrize("select", ["random", "rices"])
def test_shots_of_the_tasks_own_split_before_ranked_answers(select, folder, tmp_path):
    place = miniature("hateful-memes", tmp_path)
    told = ["--shots", "2", "--select", select]
    document, rows = evaluate(folder, tmp_path, "hateful-memes", *told)
    assert document["settings"]["shots"]["from"] == "train"
    assert [set(row["ranking"]) for row in rows] == [{"yes", "no"}] * 3
    _, alone = evaluate(folder, tmp_path, "hateful-memes", "--restart")
    assert [row["ranking"] for row in rows] != [row["ranking"] for row in alone]
    assert (place / "hateful-memes.train.rices.safetensors").exists() == (select == "rices")


def test_a_task_without_a_training_split_wants_a_file(folder, tmp_path, capsys):
    miniature("pope", tmp_path)
    command = ["eval", str(folder), "pope", "--tasks-root", str(tmp_path), "--shots", "1"]
    assert run([*command, "--json", str(tmp_path / "r.json")]) == 2
    assert "--shots-from FILE" in capsys.readouterr().err


def test_area_under_the_curve_is_sklearns():
    rng = random.Random(0)
    for _ in range(20):
        rows = []
        for _ in range(rng.randint(2, 30)):
            ranking = {"yes": rng.choice([-1.0, -2.0, -3.0]), "no": rng.choice([-1.0, -2.0])}
            rows.append({"references": [rng.choice(["yes", "no"])], "ranking": ranking, "score": 0})
        truth = [row["references"][0] == "yes" for row in rows]
        if len(set(truth)) == 2:
            wanted = roc_auc_score(truth, [certainty(row, "yes") for row in rows])
            assert auc(rows)["roc_auc"] == pytest.approx(wanted)
    said = [("yes", "Yes."), ("no", "no"), ("no", "yes")]
    rows = [{"references": [key], "text": text, "score": 0} for key, text in said]
    assert auc(rows)["roc_auc"] == 0.75, "answers that were written count by their text"
    assert auc(rows[:1])["roc_auc"] == 0.5


def test_five_likeliest():
    ranking = dict.fromkeys("abcdef", 0.0)
    rows = [{"references": [name], "ranking": ranking, "score": name == "a"} for name in "aef"]
    assert top5(rows) == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}


def test_pictures_of_mmmu_stand_where_the_text_names_them(tmp_path):
    place = miniature("mmmu", tmp_path)
    choice, free = questions_of("mmmu", load_task(tasks()["mmmu"]), place)
    kinds = [type(part) for part in choice.sample.messages[0].parts]
    assert kinds == [Media, Text, Media, Text]
    texts = [p.text for p in choice.sample.messages[0].parts if isinstance(p, Text)]
    assert texts == [
        " Which follows ",
        "?\nA. Left\nB. Right\nC. <image 2>\n\n"
        "Answer with the option's letter from the given choices directly.",
    ]
    assert choice.references == ("B", "(A) Left", "(B) Right", "(C) <image 2>")
    said = free.sample.messages[0].text
    assert said == "How many?\n\nAnswer the question using a single word or phrase."
    assert (free.references, free.sample.media) == (("12", "twelve"), [])
    (silent,) = questions_of("t", load_task(tasks()["mmmu-test"]), miniature("mmmu-test", tmp_path))
    assert silent.references == ()
    with pytest.raises(DataError, match="SUBJECT/validation"):
        list(load_task(tasks()["mmmu"]).reader.items(tmp_path / "mmmu" / "Art"))


OPTIONS = {"A": "red", "B": "the dog", "C": "left"}


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("The answer is (A), not (B).", "B"),
        ("A or B ", "B"),
        ("It is C. because", "C"),
        ("I believe that it must be the dog here", "B"),
        ("the dog", None),
    ],
)
def test_letters_as_mmmus_evaluation_finds_them(said, letter):
    found = chosen(said, OPTIONS)
    assert found == letter if letter else found in OPTIONS
    assert chosen(said, OPTIONS) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("12", {12.0}),
        ("The answer is 1,234.567", {1234.57, 1234.0, 234.57}),
        ("So x = 3.5 kg", {"3.5 kg", 3.5}),
        ("a", {" a", "a "}),
        ("It is so. Thus 2e3", {2000.0, 3.0}),
    ],
)
def test_free_answers_as_mmmus_evaluation_reads_them(said, found):
    assert set(open_answers(said)) == found


def test_mmmu_scores():
    options = ["(A) red", "(B) the dog"]
    assert mmmu("(B)", ["B", *options]) == {"mmmu": 1.0}
    assert mmmu("A", ["B", *options]) == {"mmmu": 0.0}
    assert mmmu("the total is 12.0 metres", ["12"]) == {"mmmu": 1.0}
    assert mmmu("twelve", ["12", "twelve"]) == {"mmmu": 1.0}
    assert mmmu("13", ["12"]) == {"mmmu": 0.0}


def test_tinyworld_is_an_ordinary_task(folder, tmp_path):
    place = miniature("tinyworld", tmp_path)
    document, rows = evaluate(folder, tmp_path, "tinyworld", "--max-new-tokens", "4")
    assert [row["scorer"] for row in rows] == ["exact", "number"], "captions are left out"
    assert {"accuracy", "baseline", "count", "exist"} <= set(document["metrics"])
    out = tmp_path / "rows.json"
    command = ["eval", str(folder), "--data", str(place / "test.jsonl"), "--json", str(out)]
    assert run([*command, "--max-new-tokens", "4"]) == 0
    other = out.with_suffix(".rows.jsonl").read_text("utf-8").splitlines()
    for row, line in zip(rows, other, strict=False):
        twin = json.loads(line)
        assert (row["id"], row["text"], row["score"]) == (twin["id"], twin["text"], twin["score"])
