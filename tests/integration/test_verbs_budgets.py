"""--visual-tokens in chat, generate and eval, the comparison and the fitted automatic budget."""

import csv
import io
import json
import sys

import pytest

import retinue
from retinue.cli.main import run
from retinue.decode.auto import FILE
from retinue.hub.elastic import make_elastic
from retinue.hub.save import save
from retinue.types import Media
from tiny import picture, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = tiny_model(seed=3)
    make_elastic(model, processor, scales=[1, 4, 16])
    return save(model, processor, tmp_path_factory.mktemp("model") / "elastic")


@pytest.fixture(scope="module")
def rigid(tmp_path_factory):
    return save(*tiny_model(seed=3), tmp_path_factory.mktemp("model") / "rigid")


@pytest.fixture
def rows(tmp_path):
    """q.jsonl: six questions about two pictures; answers that a random model sometimes hits."""
    for n in range(2):
        picture(n).save(tmp_path / f"{n}.png")
    made = [
        {
            "id": f"q{n}",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": f"{n % 2}.png"},
                        {"type": "text", "text": "what " * n + "?"},
                    ],
                }
            ],
            "references": list("aeiou")[: n + 1],
            "scorer": "contains",
        }
        for n in range(6)
    ]
    return write(tmp_path / "q.jsonl", made)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def command(verb, folder, *more):
    return [verb, str(folder), "--max-new-tokens", "6", "--device", "cpu", *map(str, more)]


# ---------------------------------------------------------------- generate


def test_generate_with_budgets_of_command_row_and_picture(folder, rows, tmp_path):
    made = read(rows)
    made[1]["visual_tokens"] = 16
    made[2]["messages"][0]["content"][0]["visual_tokens"] = 1
    write(rows, made)
    files = ["--input", rows, "--output", tmp_path / "a.jsonl"]
    assert run(command("generate", folder, *files, "--visual-tokens", "4")) == 0
    found = read(tmp_path / "a.jsonl")
    assert [row["visual_tokens_total"] for row in found] == [4, 16, 1, 4, 4, 4]
    assert [row["visual_tokens"] for row in found] == [4] * 6
    record = json.loads((tmp_path / "a.jsonl.run.json").read_text("utf-8"))
    assert record["settings"]["visual_tokens"] == 4
    assert run(command("generate", folder, *files, "--visual-tokens", "16")) == 2  # other settings


def test_generate_auto_and_errors(folder, rigid, rows, tmp_path, capsys):
    files = ["--input", rows, "--output", tmp_path / "a.jsonl"]
    auto = [*files, "--visual-tokens", "auto"]
    assert run(command("generate", folder, *auto, "--auto-threshold", "inf")) == 0
    assert {row["visual_tokens"] for row in read(tmp_path / "a.jsonl")} == {16}
    assert run(command("generate", folder, *auto, "--auto-threshold", "1", "--restart")) == 0
    assert {row["visual_tokens_spent"] for row in read(tmp_path / "a.jsonl")} == {1 + 4 + 16}
    mistakes = {
        ("5",): "nearest is 4",
        ("1,4",): "a number or auto",
        ("4", "--auto-threshold", "0.5"): "--auto-threshold without auto",
        ("auto", "--auto-threshold", "none.json"): "none.json",
    }
    for more, says in mistakes.items():
        assert run(command("generate", folder, *files, "--visual-tokens", *more)) == 2
        assert says in capsys.readouterr().err
    assert run(command("generate", rigid, *auto)) == 2
    assert "always has 16 a view" in capsys.readouterr().err


def test_a_rows_own_budget_that_the_model_cannot_meet_names_the_row(folder, rows, tmp_path, capsys):
    made = read(rows)
    made[3]["visual_tokens"] = 5
    write(rows, made)
    files = ["--input", rows, "--output", tmp_path / "a.jsonl"]
    assert run(command("generate", folder, *files)) == 3
    said = capsys.readouterr().err
    assert "q3" in said
    assert "nearest is 4" in said
    assert run(command("generate", folder, *files, "--on-error", "skip")) == 0
    assert len(read(tmp_path / "a.jsonl")) == 5


# ---------------------------------------------------------------- eval


def test_eval_of_one_budget_is_an_ordinary_run(folder, rows, tmp_path, capsys):
    out = ["--data", rows, "--json", tmp_path / "r.json"]
    assert run(command("eval", folder, *out, "--visual-tokens", "4")) == 0
    assert "visual tokens a question: 4.0" in capsys.readouterr().err
    document = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert document["visual_tokens"] == {"answers": 4.0, "spent": 4.0}
    found = read(tmp_path / "r.rows.jsonl")
    assert all(len(row["logprobs"]) == len(row["tokens"]) for row in found)


def test_eval_compares_fits_and_uses_the_fitted_budget(folder, rows, tmp_path, capsys):
    fitted = tmp_path / "auto.json"
    first = ["--data", rows, "--json", tmp_path / "fit" / "r.json", "--fit-auto", fitted]
    assert run(command("eval", folder, *first)) == 0
    assert f"automatic budget in {fitted}" in capsys.readouterr().err
    policy = json.loads(fitted.read_text("utf-8"))
    assert policy["fitted"]["questions"] == 6
    target = tmp_path / "r.json"
    more = ["--visual-tokens", "16,1,4,auto", "--oracle", "--auto-threshold", fitted]
    line = command("eval", folder, "--data", rows, "--json", target, *more)
    assert run(line) == 0
    said = capsys.readouterr().out
    shown = [row.split()[0] for row in said.splitlines() if row.strip()]
    assert [name for name in shown if name in ("1", "4", "16", "auto", "oracle")] == [
        "1",
        "4",
        "16",
        "auto",
        "oracle",
    ]
    document = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert document == json.loads(target.read_text("utf-8"))
    comparison = document["comparison"]
    assert comparison["questions"] == 6
    for own in comparison["budgets"]:
        rows_file = tmp_path / f"r.{own['choice']}.rows.jsonl"
        scores = [row["score"] for row in read(rows_file)]
        assert own["score"] == pytest.approx(sum(scores) / 6)
        assert own["seconds_per_question"] > 0
    best = [
        max(scores)
        for scores in zip(
            *([row["score"] for row in read(tmp_path / f"r.{b}.rows.jsonl")] for b in (1, 4, 16)),
            strict=True,
        )
    ]
    assert comparison["oracle"]["score"] == pytest.approx(sum(best) / 6)
    assert comparison["auto"]["score"] == pytest.approx(policy["fitted"]["score"], abs=1e-6)
    assert comparison["auto"]["spent"] == pytest.approx(policy["fitted"]["spent"], abs=1e-3)
    assert document["settings"]["visual_tokens"]["auto"]["rungs"] == policy["rungs"]
    for name, lines in (("r.curve.csv", 6), ("r.items.csv", 7)):
        assert len(list(csv.reader((tmp_path / name).read_text("utf-8").splitlines()))) == lines
    assert (tmp_path / "r.curve.png").stat().st_size > 1000
    assert not list(tmp_path.glob("*unfinished*"))


def test_eval_beside_another_model(folder, rows, tmp_path, capsys):
    line = command("eval", folder, "--data", rows, "--visual-tokens", "1,16")
    assert run([*line, "--json", str(tmp_path / "a" / "r.json")]) == 0
    other = f"same={tmp_path / 'a' / 'r.json'}"
    target = tmp_path / "b" / "r.json"
    assert run([*line, "--json", str(target), "--beside", other]) == 0
    assert "against same, question by question" in capsys.readouterr().out
    (found,) = json.loads(target.read_text("utf-8"))["comparison"]["beside"].values()
    assert [own["choice"] for own in found["differences"]] == ["1", "16"]
    assert [own["difference"] for own in found["differences"]] == [0, 0]
    assert run([*line, "--json", str(target), "--beside", f"none={rows}"]) == 3
    assert "no comparison of budgets" in capsys.readouterr().err


def test_an_interrupted_comparison_goes_on(folder, rows, tmp_path, monkeypatch):
    target = tmp_path / "r.json"
    line = command("eval", folder, "--data", rows, "--json", target, "--visual-tokens", "all")
    assert run(line) == 0
    straight = {name: (tmp_path / name).read_bytes() for name in ("r.items.csv", "r.4.rows.jsonl")}
    (tmp_path / "r.unfinished-curve.json").write_text("{}")
    (tmp_path / "r.16.json").unlink()
    asked = []
    from retinue.decode import offline

    ask = offline.complete
    monkeypatch.setattr(offline, "complete", lambda *a, **k: asked.append(1) or ask(*a, **k))
    assert run(line) == 0
    assert len(asked) == 1  # one batch, at the budget whose result was missing
    assert {name: (tmp_path / name).read_bytes() for name in straight} == straight


def test_a_fitted_budget_in_the_models_folder_is_its_own(folder, rows, tmp_path, capsys):
    target = tmp_path / "fit.json"
    fit = ["--data", rows, "--json", target, "--fit-auto", folder, "--fit-tolerance", "1"]
    assert run(command("eval", folder, *fit)) == 0
    policy = json.loads((folder / FILE).read_text("utf-8"))
    assert [rung["visual_tokens"] for rung in policy["rungs"]] == [1]
    line = ["--data", rows, "--json", tmp_path / "r.json", "--visual-tokens", "auto"]
    assert run(command("eval", folder, *line)) == 0
    assert "of all tries 1.0" in capsys.readouterr().err
    (folder / FILE).unlink()


# ---------------------------------------------------------------- chat and the Python functions


def test_tokens_in_a_chat(folder, rigid, tmp_path, capsys, monkeypatch):
    picture(1).save(tmp_path / "p.png")
    saved = tmp_path / "talk.jsonl"
    lines = [
        "/tokens",
        f"/image {tmp_path / 'p.png'}",
        "/tokens 4",
        "what?",
        "/tokens",
        f"/save {saved}",
        "/tokens auto",
        "and?",
        "/tokens default",
        "/tokens 5",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    assert run(command("chat", folder, "--visual-tokens", "1")) == 2
    said = capsys.readouterr()
    notes = [line for line in said.err.splitlines() if line.startswith("visual tokens")]
    shown = [line.partition(": ")[2].partition(";")[0] for line in notes]
    assert shown == ["1", "4", "4", "auto", "16 (the default)"]
    assert "1, 4, 16, auto" in notes[0]
    assert "nearest is 4" in said.err
    (talk,) = read(saved)
    assert talk["visual_tokens"] == 4
    expected = retinue.chat(
        folder, "what?", images=[str(tmp_path / "p.png")], visual_tokens=4, max_new_tokens=6
    )
    assert expected in said.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("/tokens\n/tokens auto\n"))
    assert run(command("chat", rigid)) == 2
    said = capsys.readouterr().err
    assert "16 (the default); it has no choice" in said
    assert "always has 16 a view" in said


def test_python_functions_take_budgets_per_request_and_per_picture(folder):
    def said(*images, **more):
        return retinue.chat(folder, "what?", images=images, max_new_tokens=6, **more)

    one, two = picture(1), picture(2)
    small = said(one, two, visual_tokens=1)
    assert small != said(one, two)
    assert said(Media(source=one, budget=1), Media(source=two, budget=1)) == small
    assert said(Media(source=one, budget=1), two, visual_tokens=1) == small
    assert said(one, two, visual_tokens="auto", auto_threshold=0) == small
    assert said(one, two, visual_tokens="auto", auto_threshold="inf") == said(one, two)
