"""Splits on disk: both forms, balance, baselines, and independence of workers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retinue.core.errors import ConfigError, DataError, EnvError
from retinue.data.formats import open_format
from retinue.eval.scorers import SCORERS, headline
from retinue.media.frames import Frames
from retinue.world.baseline import majority_baseline
from retinue.world.make import make_picture, read_rows, write_split
from retinue.world.options import WorldOptions
from retinue.world.tasks import TASKS

FULL = WorldOptions(words=1, figures=1)


def test_llava_json_and_rows_say_the_same(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = write_split(
        tmp_path, name="train", num_pictures=70, seed=5, turns_per_picture=6,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert path == tmp_path / "train.json"
    assert calls == [(64, 70), (70, 70)]
    records, rows = json.loads(path.read_text()), read_rows(path.with_suffix(".jsonl"))
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(records) == 70
    told = iter(rows)
    for record in records:
        assert set(record) == {"id", "image", "conversations"}
        with Image.open(tmp_path / record["image"]) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
        human, gpt = record["conversations"][::2], record["conversations"][1::2]
        assert 3 <= len(human) <= 6
        assert human[0]["value"] == "<image>\nDescribe the picture."
        for question, answer in zip(human, gpt, strict=True):
            row = next(told)
            assert (question["from"], answer["from"]) == ("human", "gpt")
            assert row["messages"] == [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": record["image"]},
                        {"type": "text", "text": question["value"].removeprefix("<image>\n")},
                    ],
                }
            ]
            assert row["answer"] == answer["value"]
            assert row["answer"] in row["references"]
    assert next(told, None) is None


def test_every_task_is_written_and_its_scorer_accepts_its_answer(tmp_path: Path) -> None:
    path = write_split(
        tmp_path, name="all", num_pictures=24, seed=0, options=FULL, tasks=TASKS.names(),
        turns_per_picture=60,
    )  # fmt: skip
    rows = read_rows(path.with_suffix(".jsonl"))
    assert {row["task"] for row in rows} == set(TASKS)
    for row in rows:
        assert headline(SCORERS.get(row["scorer"])(row["answer"], row["references"])) == 1.0
        parts = row["messages"][0]["content"]
        images = [part["image"] for part in parts if "image" in part]
        images += [name for part in parts if "video" in part for name in part["video"]]
        assert all((tmp_path / image).exists() for image in images)
        assert len(images) == {"multi_image": len(images), "video": 6}.get(row["task"], 1)
    by_id = {record["id"]: record for record in json.loads(path.read_text())}
    films = [row for row in rows if row["task"] == "video"]
    record = by_id[films[0]["id"].partition("/")[0]]
    assert [len(video) for video in record["video"]] == [6]
    assert record["conversations"][0]["value"].startswith("<video>\nWhich way")


@pytest.mark.parametrize("film", ["frames", "mkv", "mp4"])
def test_videos_are_lists_of_frames_or_files(tmp_path: Path, film: Any) -> None:
    """All three are read back as the same frames, mp4 with a little loss."""
    split = {"name": "v", "num_pictures": 2, "seed": 3, "tasks": ("video",)}
    frames = open_format(write_split(tmp_path / "frames", **split))
    ours = open_format(write_split(tmp_path / film, film=film, **split))
    for index in range(len(frames)):
        (listed,), (video,) = frames[index].media, ours[index].media
        assert isinstance(video.source, tuple if film == "frames" else str)
        want, found = Frames().pictures(listed.source), Frames().pictures(video.source)
        assert len(found) == len(want) == 6
        for one, other in zip(want, found, strict=True):
            apart = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
            assert apart.mean() <= (6 if film == "mp4" else 0)
    options = WorldOptions(size=(65, 65))
    with pytest.raises(ConfigError, match="even numbers"):
        write_split(tmp_path / "odd", film="mp4", **split, options=options)


def test_caption_may_come_last() -> None:
    common = {"name": "t", "seed": 3, "options": WorldOptions(), "turns": 6}
    for index in range(5):
        _, turns = make_picture(index, **common, caption_first=False)
        tasks = [qa.task for qa in turns]
        assert tasks.index("caption_dense") == len(tasks) - 1 >= 2


def test_splits_repeat_and_differ_by_name_and_seed(tmp_path: Path) -> None:
    def text(folder: str, **changes: object) -> str:
        arguments = {"name": "a", "num_pictures": 3, "seed": 1} | changes
        path = write_split(tmp_path / folder, **arguments)
        return path.read_text().replace(f'"{arguments["name"]}-', '"')

    assert text("one") == text("two")
    assert text("one") != text("three", seed=2)
    assert text("one") != text("four", name="b")
    longer = json.loads(text("five", num_pictures=5))
    assert longer[:3] == json.loads(text("one"))


@pytest.mark.slow
def test_workers_do_not_change_a_split(tmp_path: Path) -> None:
    def files(folder: Path, workers: int) -> dict[str, bytes]:
        write_split(folder, name="a", num_pictures=130, seed=1, workers=workers)
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    assert files(tmp_path / "here", 0) == files(tmp_path / "there", 2)


def test_answers_are_balanced() -> None:
    rows = []
    for index in range(600):
        _, turns = make_picture(index, name="test", seed=11, options=WorldOptions())
        rows += [{"task": qa.task, "answer": qa.answer, "scorer": qa.scorer} for qa in turns]
    scores = majority_baseline(rows)
    assert 0.45 < scores["exist"] < 0.55
    assert scores["count"] < 0.31
    for task in ("colour", "shape", "place"):
        assert scores[task] < 0.2, task
        assert len({row["answer"] for row in rows if row["task"] == task}) >= 8
    assert scores["rec"] < 0.15
    assert scores["all"] < 0.25
    asked = Counter(row["task"] for row in rows)
    assert min(asked.values()) > 500


def test_majority_baseline_literals() -> None:
    rows = [{"task": "count", "answer": a, "scorer": "number"} for a in "1123"]
    rows += [{"task": "rec", "answer": a, "scorer": "iou"} for a in ("[0 0 4 4]", "[0 0 4 8]")]
    # the mean box is 0 0 4 6
    rec = (16 / 24 + 24 / 32) / 2
    expected = {"count": 0.5, "rec": rec, "all": (4 * 0.5 + 2 * rec) / 6}
    assert majority_baseline(rows) == pytest.approx(expected)
    assert majority_baseline([]) == {}


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'count'"):
        write_split(tmp_path, name="a", num_pictures=1, seed=0, tasks=["cuont"])
    with pytest.raises(ConfigError, match="'ocr' asks about words"):
        write_split(tmp_path, name="a", num_pictures=1, seed=0, tasks=["ocr"])
    letters = WorldOptions(objects="letters")
    with pytest.raises(ConfigError, match="'called' gives shapes names"):
        write_split(tmp_path, name="a", num_pictures=1, seed=0, tasks=["called"], options=letters)
    with pytest.raises(ConfigError, match="at least 1"):
        write_split(tmp_path, name="a", num_pictures=0, seed=0)
    alone = WorldOptions(max_objects=1)
    with pytest.raises(DataError, match="no picture of 2"):
        write_split(tmp_path, name="a", num_pictures=2, seed=0, tasks=["relation"], options=alone)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match="cannot write the split"):
        write_split(tmp_path / "file", name="a", num_pictures=1, seed=0)


def test_empty_pictures_have_few_questions() -> None:
    bare = WorldOptions(min_objects=0, max_objects=1)
    asked: set[str] = set()
    for index in range(20):
        scene, turns = make_picture(index, name="t", seed=0, options=bare, turns=40)
        if not scene.things:
            asked |= {qa.task for qa in turns}
    assert asked == {"caption_dense", "count"}
