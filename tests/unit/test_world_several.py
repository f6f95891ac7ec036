"""Questions about several pictures: their places, new words, and the same world told in words."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from retinue.core.errors import ConfigError
from retinue.data.formats import open_format
from retinue.world.make import read_rows, write_split
from retinue.world.options import SHAPES, WorldOptions
from retinue.world.scene import sample_scene
from retinue.world.tasks import TASKS
from retinue.world.tasks.several import WORDS

INLINE = WorldOptions(max_objects=2, inline=True)


def test_pictures_follow_the_question_behind_their_numbers(tmp_path: Path) -> None:
    path = write_split(
        tmp_path, name="a", num_pictures=12, seed=3, tasks=("multi_image",), options=INLINE,
        told="short",
    )  # fmt: skip
    records, rows = json.loads(path.read_text()), read_rows(path.with_suffix(".jsonl"))
    told = json.loads(path.with_suffix(".told.json").read_text())
    for record, row, words in zip(records, rows, told, strict=True):
        asked = record["conversations"][0]["value"]
        count = len(record["image"])
        assert asked.endswith("".join(f"\n{n}: <image>" for n in range(1, count + 1)))
        kinds = [part["type"] for part in row["messages"][0]["content"]]
        assert kinds == ["text", "image"] * count
        assert row["messages"][0]["content"][0]["text"].endswith("\n1: ")
        # in words, the one picture whose caption names the object is the answer
        _, *captions = words["conversations"][0]["value"].split("\n")
        name = asked.split("\n")[0].removeprefix("Which picture has a").lstrip("n ").rstrip("?")
        having = [text.split(":")[0] for text in captions if name in text]
        assert having == [row["answer"]]
        assert "image" not in words
    sample = open_format(path)[0]
    assert str(sample.media[0].source).endswith("-0.png")


def test_a_name_is_what_the_turns_before_called_the_shape(tmp_path: Path) -> None:
    options = WorldOptions(shapes=6)
    for index in range(40):
        rng = Random(index)
        (qa,) = TASKS.get("naming")(sample_scene(rng, options=options), rng=rng, options=options)
        assert 2 <= len(qa.shots) <= 4
        names = {shot.scenes[0].things[0].shape: shot.answer for shot in qa.shots}
        assert len(names) == len(set(names.values())) == 2
        assert names[qa.scenes[0].things[0].shape] == qa.answer
        for shot in (*qa.shots, qa):
            assert len(shot.scenes[0].things) == 1
            assert names[shot.scenes[0].things[0].shape] == shot.answer
    path = write_split(tmp_path, name="a", num_pictures=3, seed=1, tasks=("naming",), told="dense")
    records, rows = json.loads(path.read_text()), read_rows(path.with_suffix(".jsonl"))
    for record, row in zip(records, rows, strict=True):
        assert len(record["conversations"]) == 2 * len(record["image"])
        assert len(row["messages"]) == 2 * len(record["image"]) - 1
        assert row["answer"] == record["conversations"][-1]["value"]
    words = json.loads(path.with_suffix(".told.json").read_text())
    assert all("<image>" not in turn["value"] for turn in words[0]["conversations"])


def test_skipped_shapes_are_never_drawn_and_keep_their_word() -> None:
    options = WorldOptions(skip_shapes=6, shapes=8)
    assert options.shape_names == SHAPES[6:8]
    seen = set()
    for index in range(30):
        rng = Random(index)
        scene = sample_scene(rng, options=options)
        assert {thing.shape for thing in scene.things} <= set(SHAPES[6:8])
        (qa,) = TASKS.get("called")(scene, rng=rng, options=options)
        seen.add((qa.scenes[0].things[0].shape, qa.answer))
    assert seen == {(SHAPES[6], WORDS[6]), (SHAPES[7], WORDS[7])}
    one = WorldOptions(shapes=1)
    assert TASKS.get("naming")(scene, rng=Random(0), options=one) == []
    with pytest.raises(ConfigError, match="leaves none of 4 shapes"):
        WorldOptions.parse({"skip_shapes": 4, "shapes": 4}, where="test")
