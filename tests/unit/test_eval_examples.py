"""Few-shot questions: whose examples, in which order, and how they stand before the question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from retinue.core.errors import ConfigError, DataError
from retinue.eval.examples import (
    drawn,
    nearest,
    picture_features,
    read_shots,
    with_shots,
)
from retinue.eval.questions import read_questions
from retinue.types import Media
from tiny import picture, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pool.json (LLaVA's, six pictures) and ask.jsonl: three of them again, and a seventh."""
    records, rows = [], []
    for number in range(7):
        name = f"{number}.png"
        picture(number).save(tmp_path / name)
        if number < 6:
            turns = [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": f"word{number}"},
                {"from": "human", "value": "And now?"},
                {"from": "gpt", "value": "nothing"},
            ]
            records.append({"id": f"pool{number}", "image": name, "conversations": turns})
        if number % 2 == 0:
            content = [{"type": "image", "image": name}, {"type": "text", "text": "What is it?"}]
            messages: list[Any] = [{"role": "user", "content": content}]
            if number == 0:
                messages.insert(0, {"role": "system", "content": "Be brief."})
            rows.append(
                {"id": f"q{number}", "messages": messages, "answer": "x", "scorer": "exact"}
            )
    (tmp_path / "pool.json").write_text(json.dumps(records))
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_first_exchanges_stand_before_the_question(folder: Path) -> None:
    shots = read_shots(folder / "pool.json")
    assert [shot.said.text for shot in shots] == [f"word{n}" for n in range(6)]
    question = read_questions(folder / "ask.jsonl")[0]
    made = with_shots(question, [shots[3], shots[1]]).sample.messages
    assert [one.role for one in made] == ["system", *("user", "assistant") * 2, "user"]
    assert [one.text.strip() for one in made[1:5:2]] == ["What is it?"] * 2
    assert [one.text for one in made[2:6:2]] == ["word3", "word1"]
    assert [str(m.source).rsplit("/")[-1] for one in made for m in one.media] == [
        "3.png", "1.png", "0.png",
    ]  # fmt: skip
    blind = with_shots(question, [shots[3].blind]).sample.messages
    assert [len(one.media) for one in blind] == [0, 0, 0, 1]
    assert blind[1].text == "What is it?"


def test_drawn_examples_are_a_function_of_seed_and_question(folder: Path) -> None:
    shots, questions = read_shots(folder / "pool.json"), read_questions(folder / "ask.jsonl")
    found = drawn(questions, shots, count=4, seed=3)
    assert found == drawn(questions, shots, count=4, seed=3)
    assert found[1:] == drawn(questions[1:], shots, count=4, seed=3)
    assert found != drawn(questions, shots, count=4, seed=4)
    for question, own in zip(questions, found, strict=True):
        assert len(set(own)) == 4
        # the picture that is asked about is never an example
        number = int(question.sample.id[1:])
        assert number not in own
    with pytest.raises(ConfigError, match="5 examples beside the question itself"):
        drawn(questions[:1], shots, count=6, seed=0)


def test_nearest_pictures_come_last_and_never_the_own_one(folder: Path) -> None:
    model, processor = tiny_model(seed=2)
    shots, questions = read_shots(folder / "pool.json"), read_questions(folder / "ask.jsonl")
    index = folder / "pool.json.rices.safetensors"
    known = picture_features(
        model, processor, [shot.picture for shot in shots], cache=index, mark="a"
    )
    asked = picture_features(model, processor, [q.sample.media[0] for q in questions], batch_size=2)
    torch.testing.assert_close(asked[:3], known[::2], atol=1e-6, rtol=0)
    likeness = torch.nn.functional.normalize(asked) @ torch.nn.functional.normalize(known).T
    found = nearest(questions, shots, count=3, known_ND=known, asked_ND=asked)
    for number, (row, own) in enumerate(zip(likeness, found, strict=True)):
        order = row.argsort(descending=True).tolist()
        wanted = [n for n in order if n != 2 * number][:3]
        assert own == wanted[::-1]
    # the index is read, not made, unless weights or pictures are others
    again = picture_features(
        None, processor, [shot.picture for shot in shots], cache=index, mark="a"
    )
    assert torch.equal(again, known)
    with pytest.raises(AttributeError):
        picture_features(None, processor, [shots[0].picture], cache=index, mark="a")


def test_what_cannot_be_an_example(folder: Path) -> None:
    (folder / "bare.jsonl").write_text(
        json.dumps({"id": "a", "messages": [{"role": "user", "content": "What?"}]}) + "\n"
    )
    with pytest.raises(DataError, match="no example"):
        read_shots(folder / "bare.jsonl")
    model, processor = tiny_model()
    with pytest.raises(ConfigError, match="without a picture"):
        picture_features(model, processor, [None])
    with pytest.raises(ConfigError, match="without a picture"):
        picture_features(model, processor, [Media(kind="video", source="a.mkv")])
