"""Two results question by question: pairing, intervals, tests."""

import json

import pytest
from scipy.stats import binomtest, permutation_test

from retinue.cli.main import run
from retinue.core.errors import DataError
from retinue.eval.compare import difference, mcnemar, paired, read_result, sign_flips
from retinue.eval.predictions import from_saved, read_predictions
from retinue.eval.questions import read_questions


def rows(scores, *, task="t"):
    return [
        {"id": f"q{n}", "task": task, "score": score, "scores": {"exact": score}}
        for n, score in enumerate(scores)
    ]


def write(path, made):
    path.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    return path


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 3), (9, 2), (2, 30), (40, 61)])
def test_mcnemar_is_the_exact_binomial_test(wins, losses):
    count = wins + losses
    wanted = binomtest(wins, count).pvalue if count else 1.0
    assert mcnemar(wins, losses) == pytest.approx(wanted)


def test_sign_flips_are_the_paired_permutation_test():
    gaps = [0.3, -0.1, 0.5, 0.2, 0.0, 0.4, -0.2, 0.6]
    wanted = permutation_test(
        (gaps, [0.0] * len(gaps)),
        lambda a, b: sum(a) - sum(b),
        permutation_type="samples",
        vectorized=False,
    ).pvalue
    assert sign_flips(gaps) == pytest.approx(wanted, abs=0.02)
    assert sign_flips(gaps) == sign_flips(gaps)
    assert sign_flips([0.0, 0.0]) == 1.0


def test_difference_of_graded_and_of_right_or_wrong():
    own, other = rows([1.0, 1.0, 0.0, 1.0]), rows([0.0, 1.0, 0.0, 0.0])
    found = difference(list(zip(own, other, strict=True)))
    assert (found["difference"], found["wins"], found["losses"]) == (0.5, 2, 0)
    assert (found["test"], found["p"]) == ("mcnemar", 0.5)
    assert found["low"] < 0.5 < found["high"]
    own[0]["score"] = 0.5
    assert difference(list(zip(own, other, strict=True)))["test"] == "sign flips"


def test_pairs_are_found_by_id_and_task():
    own = {"a": rows([1.0, 0.0, 1.0]), "b": rows([1.0])}
    other = {"a": list(reversed(rows([1.0, 1.0]))), "c": rows([0.0])}
    (found,) = paired(own, other)
    assert (found["task"], found["questions"], found["left_out"]) == ("a", 2, 1)
    assert (found["score"], found["other"]) == (0.5, 1.0)
    with pytest.raises(DataError, match="share no question"):
        paired({"a": rows([1.0])}, {"b": rows([1.0])})


def test_results_rows_and_folders_are_read(tmp_path, capsys):
    path = write(tmp_path / "result.rows.jsonl", rows([1.0, 0.0]))
    (tmp_path / "result.json").write_text('{"status": "done"}', "utf-8")
    wanted = read_result(path)
    assert read_result(tmp_path) == read_result(tmp_path / "result.json") == wanted
    other = write(tmp_path / "other.jsonl", rows([0.0, 0.0]))
    assert run(["compare", str(tmp_path), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["difference"] == 0.5
    assert run(["compare", str(tmp_path), str(tmp_path / "none.json")]) == 3
    assert "no result of an evaluation" in capsys.readouterr().err


def test_saved_answers_by_number_after_an_interruption(tmp_path):
    asked = [
        {"id": str(n), "messages": [{"role": "user", "content": "?"}], "answer": "x"}
        for n in range(4)
    ]
    questions = read_questions(write(tmp_path / "q.jsonl", asked), scorer="exact")
    said = [{"doc_id": n, "filtered_resps": [f"answer {n}"]} for n in range(4)]
    saved = read_predictions(write(tmp_path / "s.jsonl", said))
    missed = []
    predict = from_saved(saved, questions, missed.append, first=2)
    assert [one.text for one in predict(questions[2:])] == ["answer 2", "answer 3"]
    assert not missed


def test_the_table_fits_a_terminal(tmp_path, capsys):
    one = write(tmp_path / "a.jsonl", rows([0.8123, 1.0] * 1200, task="caption_dense"))
    other = write(tmp_path / "b.jsonl", rows([0.9, 0.1] * 1200, task="caption_dense"))
    assert run(["compare", str(one), str(other)]) == 0
    header, line = (found.split() for found in capsys.readouterr().out.splitlines())
    assert header == ["task", "count", "A", "B", "A", "-", "B", "95", "%", "A", ":", "B", "p"]
    assert line[:5] == ["caption_dense", "2,400", "0.906", "0.5", "0.406"]
    assert line[6:] == ["to", line[7], "1200", ":", "1200", "<0.001"]
    assert float(line[5]) < 0.406 < float(line[7])
