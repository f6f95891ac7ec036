"""An evaluation killed with SIGKILL at random moments ends with the files of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from miniatures import miniature
from retinue.hub.save import save
from tiny import picture, tiny_model

QUESTIONS = 60


def questions(root):
    """The miniature of POPE, and GQA's with many questions."""
    miniature("pope", root)
    folder = miniature("gqa", root)
    for n in range(6):
        picture(n).save(folder / "images" / f"n{n}.jpg")
    rows = {
        str(n): {"imageId": f"n{n % 6}", "question": f"Is it number {n}?", "answer": "yes"}
        for n in range(QUESTIONS)
    }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(rows), "utf-8")


def rows_in(place):
    return sum(len(path.read_bytes().splitlines()) for path in place.glob("*.rows.jsonl"))


@pytest.mark.slow
def test_killed_three_times_at_random_moments(tmp_path):
    model, processor = tiny_model()
    folder = save(model, processor, tmp_path / "model")
    questions(tmp_path)
    command = [sys.executable, "-m", "retinue", "eval", str(folder), "pope", "gqa"]
    command += ["--tasks-root", str(tmp_path), "--batch-size", "2", "--max-new-tokens", "24"]
    command += ["--device", "cpu", "--json"]
    straight, broken = (tmp_path / name / "r.json" for name in ("straight", "broken"))

    def start(target):
        quiet = subprocess.DEVNULL
        return subprocess.Popen([*command, str(target)], stdout=quiet, stderr=quiet)

    whole = start(straight)
    assert whole.wait(200) == 0
    total, rng, kills = rows_in(straight.parent), random.Random(os.getpid()), 0
    bounds = [0, total // 3, 2 * total // 3, total]
    for low, high in pairwise(bounds):
        child, wanted = start(broken), rng.randint(low + 1, high - 1)
        end = time.monotonic() + 120
        try:
            while child.poll() is None and time.monotonic() < end:
                if broken.parent.is_dir() and rows_in(broken.parent) >= wanted:
                    break
                time.sleep(0.002)
        finally:
            child.kill()
        kills += child.wait(60) == -signal.SIGKILL
    assert kills == 3, "an evaluation was done before it could be killed"
    assert start(broken).wait(200) == 0
    names = sorted(path.name for path in straight.parent.iterdir())
    assert sorted(path.name for path in broken.parent.iterdir()) == names
    for name in names:
        assert (broken.parent / name).read_bytes() == (straight.parent / name).read_bytes(), name
