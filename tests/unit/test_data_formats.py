"""Formats: what is read, and that every complaint names file, sample, field, rule and fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retinue.core.errors import ConfigError, DataError
from retinue.data.formats import FORMATS, detect_format, open_format
from retinue.data.formats.records import CHUNK, Records
from retinue.types import Media, Text


def write(path: Path, rows: list[Any], *, lines: bool = True) -> Path:
    text = "\n".join(json.dumps(row) for row in rows) if lines else json.dumps(rows, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(who: str, value: Any) -> dict[str, Any]:
    return {"from": who, "value": value}


@pytest.mark.parametrize("lines", [True, False])
def test_llava_places_images_where_the_placeholders_are(tmp_path: Path, lines: bool) -> None:
    row = {
        "id": 7,
        "image": ["a.png", "sub/b.png"],
        "source": "x",
        "conversations": [
            said("human", "left <image> right <image>\nwhich?"),
            said("gpt", "é, the left"),
        ],
    }
    data = open_format(write(tmp_path / "d.json", [row], lines=lines), media_root=tmp_path / "m")
    sample = data[0]
    assert (len(data), sample.id, sample.meta) == (1, "7", {"source": "x"})
    assert sample.messages[0].parts == (
        Text(text="left "),
        Media(source=str(tmp_path / "m/a.png"), name="a.png"),
        Text(text=" right "),
        Media(source=str(tmp_path / "m/sub/b.png"), name="sub/b.png"),
        Text(text="\nwhich?"),
    )
    assert [m.role for m in sample.messages] == ["user", "assistant"]
    assert sample.messages[1].text == "é, the left"


def test_chat_reads_every_way_to_write_an_image(tmp_path: Path) -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "b.png", "visual_tokens": 9},
        {"type": "image", "url": "https://host/c.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
    ]
    rows = [
        {"messages": [turn("system", "be brief"), turn("user", parts)]},
        {
            "id": "two",
            "images": ["x.png", {"path": "y.png"}, {"path": "z.png", "visual_tokens": 4}],
            "visual_tokens": 36,
            "messages": [
                turn("user", "one <image> of"),
                turn("user", [{"type": "image", "visual_tokens": 1}, {"type": "image"}]),
                turn("assistant", "ok"),
            ],
        },
    ]
    data = open_format(write(tmp_path / "d.jsonl", rows))
    first, second = data[0], data[1]
    assert first.id == "d-0"
    media = first.messages[1].media
    assert [m.source for m in media] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "b.png"),
        "https://host/c.png",
        "data:image/png;base64,AA==",
    ]
    assert [m.budget for m in media] == [None, 9, None, None]
    assert [m.name for m in second.media] == ["x.png", "y.png", "z.png"]
    assert [m.budget for m in second.media] == [36, 1, 4]  # the row's, the part's, the entry's
    assert isinstance(second.messages[0].parts[1], Media)
    assert second.messages[0].text == "one  of"


def test_train_flag_of_a_turn(tmp_path: Path) -> None:
    rows = [{"messages": [turn("assistant", "a") | {"train": False}, turn("assistant", "b")]}]
    sample = open_format(write(tmp_path / "d.jsonl", rows))[0]
    assert [m.train for m in sample.messages] == [False, None]


GOOD = [turn("user", "q"), turn("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"messages": []}, ["messages", "non-empty list"]),
        ({"messages": None, "id": 3}, ["messages: missing"]),
        ({"messages": ["hi"]}, ["messages[0]", "role", "add the missing key"]),
        ({"messages": [turn("human", "q")]}, ["messages[0].role", "unknown role 'human'", "user"]),
        ({"messages": [turn(["x"], "q")]}, ["messages[0].role", "unknown role"]),
        ({"messages": [turn("user", None)]}, ["messages[0].content", "missing", "string or a li"]),
        ({"messages": [turn("user", "q"), turn("assistant", " ")]}, ["answer is empty", "[1]"]),
        ({"messages": [turn("user", [{"type": "sound"}])]}, ["content[0]", "sound", "a part is"]),
        ({"messages": [turn("user", [{"type": "image", "image": 3}])]}, ["names no image"]),
        (
            {"messages": [turn("user", [{"type": "image", "image": "a", "budget": 0}])]},
            ["visual_tokens: 0", "positive number"],
        ),
        (
            {"messages": GOOD[:1], "images": ["a.png"], "visual_tokens": True},
            ["visual_tokens: True", "positive number"],
        ),
        ({"messages": [turn("user", "<image>")]}, ["more than 0 places", "for 0 images"]),
        ({"messages": GOOD, "images": ["a.png"]}, ["0 places", "1 images", "add or remove"]),
        ({"messages": [turn("assistant", "a") | {"train": "no"}]}, ["train", "true or false"]),
    ],
)
def test_chat_errors(tmp_path: Path, row: dict[str, Any], names: list[str]) -> None:
    path = write(tmp_path / "d.jsonl", [{"messages": GOOD}, {"id": "s9", **row}])
    data = open_format(path, format="chat")
    with pytest.raises(DataError) as caught:
        data[1]
    message = str(caught.value)
    assert f"{path}:2 (sample '{row.get('id', 's9')}')" in message
    assert all(name in message for name in names), message
    assert caught.value.rule
    assert caught.value.fix


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"image": "a.png"}, ["conversations: missing"]),
        ({"conversations": [{"from": "human"}]}, ["conversations[0]", "add the missing key"]),
        ({"conversations": [said("bot", "x")]}, ["conversations[0].from", "unknown role 'bot'"]),
        ({"conversations": [said("human", 3)]}, ["conversations[0].value", "string"]),
        ({"conversations": [said("human", "q"), said("gpt", "")]}, ["[1].value", "empty"]),
        ({"conversations": [said("human", "<image>")]}, ["1 <image> for 0 images"]),
        ({"image": "a.png", "conversations": [said("human", "q")]}, ["0 <image> for 1 image "]),
        ({"image": 4, "conversations": [said("human", "<image>")]}, ["image: 4 names no image"]),
    ],
)
def test_llava_errors(tmp_path: Path, row: dict[str, Any], names: list[str]) -> None:
    good = {"conversations": [said("human", "q"), said("gpt", "a")]}
    path = write(tmp_path / "d.json", [good, {"id": "s9", **row}], lines=False)
    with pytest.raises(DataError) as caught:
        open_format(path, format="llava")[1]
    message = str(caught.value)
    assert str(path) in message
    assert "(sample 's9')" in message
    assert all(name in message for name in names), message
    assert caught.value.rule
    assert caught.value.fix


def test_empty_answers_can_be_accepted(tmp_path: Path) -> None:
    row = {"conversations": [said("human", "q"), said("gpt", "")]}
    data = open_format(write(tmp_path / "d.json", [row]), empty_answers=True)
    assert data[0].messages[1].parts == ()


def test_formats_are_found_by_contents(tmp_path: Path) -> None:
    chat = write(tmp_path / "x.json", [{"messages": GOOD}], lines=False)
    llava = write(tmp_path / "y.jsonl", [{"conversations": [said("human", "q")]}])
    assert (detect_format(chat), detect_format(llava)) == ("chat", "llava")
    other = write(tmp_path / "z.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match=r"z\.jsonl: the first record fits no format"):
        detect_format(other)
    with pytest.raises(DataError, match="there is no such file"):
        detect_format(tmp_path / "none")
    with pytest.raises(DataError, match="this is no file"):
        detect_format(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'llava'"):
        open_format(llava, format="lava")
    assert all(FORMATS.describe(name) for name in FORMATS)


def test_records_keep_only_offsets_and_cross_the_window(tmp_path: Path) -> None:
    rows = [{"n": n, "text": 'ü]}"' * 50_000} for n in range(8)] + [{"big": "x" * (2 * CHUNK)}]
    for lines in (True, False):
        path = tmp_path / f"big-{lines}.json"
        dump = "\ufeff" + (
            "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
            if lines
            else json.dumps(rows, ensure_ascii=False, indent=2)
        )
        path.write_text(dump, encoding="utf-8")
        records = Records(path)
        assert records.is_list is not lines
        assert [records[i] for i in (8, 0, 3)] == [rows[8], rows[0], rows[3]]
        assert len(records) == 9
        assert len(Records(path, limit=3)) == 3


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('{"messages": 1}\n{"messages": \n', 2, "broken JSON"),
        ('[\n{"a": 1},\n{"a": }\n]', 3, "broken JSON: Expecting value"),
        ('[\n{"a": 1},\n', 3, "not closed by ']'"),
        ('{"a": 1}\n[1, 2]\n', 2, "expected an object, found list"),
        ('[{"a": 1},\n\n 5]', 3, "expected an object, found int"),
        ('{"a": 1}\n{"a": "\xff"}', 2, "not UTF-8"),
    ],
)
def test_broken_files_name_the_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        Records(path)[1]
    assert f"{path}:{line}: " in str(caught.value)
    assert problem in str(caught.value)
    assert caught.value.fix


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(" \n")
    with pytest.raises(DataError, match="the file is empty"):
        Records(tmp_path / "e.json")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Records(tmp_path / "n.json")
