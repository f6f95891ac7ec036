"""Result files: torn lines, other inputs, skipped rows."""

import json

import pytest

from retinue.core.errors import DataError
from retinue.decode.rows import RowFile


def fill(path, *ids):
    file = RowFile(path)
    for id in ids:
        file.append({"id": id, "text": "é"})
    return path


def test_rows_come_back(tmp_path):
    path = fill(tmp_path / "deep" / "o.jsonl", "a", 1)
    assert [row["id"] for row in RowFile(path).rows] == ["a", 1]
    assert path.read_text("utf-8").splitlines()[0] == '{"id": "a", "text": "é"}'


@pytest.mark.parametrize("kept", [1, 3, 10, 19])
def test_a_torn_last_line_is_removed(tmp_path, kept):
    path = fill(tmp_path / "o.jsonl", "a", "b")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    file = RowFile(path)
    assert [row["id"] for row in file.rows] == ["a"]
    assert path.read_bytes() == first
    file.append({"id": "b", "text": "é"})
    assert path.read_bytes() == first + second


def test_a_broken_line_elsewhere_is_named(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text('{"id": 1}\n{"id":\n{"id": 3}\n', "utf-8")
    with pytest.raises(DataError, match=r"o\.jsonl:2.*--restart"):
        RowFile(path)
    assert RowFile(path, restart=True).rows == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("found", "skipped", "position"),
    [
        ([], (), 0),
        ("ab", (), 2),
        ("abcd", (), 4),
        ("ad", (1, 2), 4),
        ("a", (1,), 1),
        ("b", (0,), 2),
    ],
)
def test_where_to_go_on(tmp_path, found, skipped, position):
    file = RowFile(fill(tmp_path / "o.jsonl", *found))
    assert file.settled("abcd", skipped=skipped) == position


@pytest.mark.parametrize("found", ["b", "ac", "abcde", "aa"])
def test_answers_to_other_inputs_are_refused(tmp_path, found):
    path = fill(tmp_path / "o.jsonl", *found)
    with pytest.raises(DataError, match="--restart"):
        RowFile(path).settled("abcd")


def test_rewrite(tmp_path):
    file = RowFile(fill(tmp_path / "o.jsonl", "a", "b"))
    file.rewrite(file.rows[1:])
    assert [json.loads(line)["id"] for line in file.path.read_text().splitlines()] == ["b"]
