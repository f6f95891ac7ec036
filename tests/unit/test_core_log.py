"""What runs say: ranks, once, tables, JSON lines."""

import io
import json

from retinue.core.log import JsonLines, get_logger, once, print_table


def test_only_rank_0_says_things_but_errors_show(capsys, monkeypatch):
    log = get_logger("retinue.test")
    log.info("first")
    monkeypatch.setenv("RANK", "1")
    log.info("second")
    log.error("third")
    assert capsys.readouterr().err == "first\nthird\n"


def test_once(capsys):
    once("said once in test_once")
    once("said once in test_once")
    assert capsys.readouterr().err == "said once in test_once\n"


def test_table(monkeypatch):
    out = io.StringIO()
    print_table([("a", 1234), ("b", 5)], header=("name", "count"), file=out)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines == ["name  count", "a     1,234", "b         5"]
    monkeypatch.setenv("RANK", "2")
    print_table([], header=("x",), file=out)
    assert len(out.getvalue().splitlines()) == 3


def test_json_lines(tmp_path, monkeypatch):
    path = tmp_path / "logs" / "steps.jsonl"
    rows = JsonLines(path)
    rows.write({"step": 1, "path": tmp_path})
    rows.write({"step": 2, "text": "ä"})
    monkeypatch.setenv("RANK", "1")
    JsonLines(path).write({"step": 3})
    read = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert read == [{"step": 1, "path": str(tmp_path)}, {"step": 2, "text": "ä"}]
