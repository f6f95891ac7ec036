"""Further turns, and Instruct-Flamingo's JSON as samples."""

import json

import pytest

from retinue.cli.main import run
from retinue.core.errors import DataError
from retinue.data.formats import detect_format, open_format
from retinue.data.turns import Turns, TurnsSpec
from retinue.types import Media, Text

ROWS = [
    {"input": "a<img_path>x/1.png<img_path>b", "output": "one"},
    {"input": "plain", "output": "two"},
    {"instruction": "Answer: ", "input": "<img_path>2.png<img_path>?", "output": "three"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS), "utf-8")
    assert detect_format(path) == "instruct"
    return open_format(path, media_root=tmp_path / "images")


def test_pictures_stand_where_their_paths_stood(source, tmp_path):
    asked, told = source[0].messages
    assert [type(part) for part in asked.parts] == [Text, Media, Text]
    assert asked.media[0].source == str(tmp_path / "images" / "x/1.png")
    assert (asked.text, told.text) == ("ab", "one")
    assert source[2].messages[0].parts[0] == Text(text="Answer: ")


def test_a_field_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"input": 3, "output": "x"}]), "utf-8")
    with pytest.raises(DataError, match="input"):
        open_format(path)[0]


def test_turns_are_added_and_stay_the_same(source):
    turns = Turns(source, TurnsSpec(add=4))
    assert len(turns) == len(source)
    for index in range(len(ROWS)):
        sample = turns[index]
        assert len(sample.messages) == 10
        assert sample.messages[:2] == source[index].messages
        assert [message.role for message in sample.messages] == ["user", "assistant"] * 5
        assert turns[index] == sample
    assert turns[0].messages != Turns(source, TurnsSpec(add=4, seed=1))[0].messages


def test_no_more_media_than_allowed(source):
    for index in range(len(ROWS)):
        sample = Turns(source, TurnsSpec(add=9, max_media=2))[index]
        assert len(sample.media) <= 2


def test_a_published_data_set_becomes_rows(tmp_path):
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    path = tmp_path / "w.json"
    path.write_text(json.dumps([{"conversations": turns}]), "utf-8")
    out = tmp_path / "out.json"
    assert run(["data", "convert", str(path), str(out), "--from", "wizardlm"]) == 0
    assert json.loads(out.read_text("utf-8")) == [{"input": "x", "output": "y"}]
    assert run(["data", "convert", str(path), str(out), "--from", "wizard"]) == 2
