"""Files stay readable: caps on length; exceeding one means that a seam is missing."""

import statistics
from pathlib import Path

import pytest

import retinue

SRC = Path(retinue.__file__).parent
CAPS = {"model/retinue.py": 300, "train/trainer.py": 400, "processor.py": 320}
ANY_FILE = 400
MEDIAN = 120

FILES = sorted(SRC.rglob("*.py"))


def lines(path):
    return len(path.read_text("utf-8").splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_no_file_exceeds_its_cap(path):
    assert lines(path) <= CAPS.get(path.relative_to(SRC).as_posix(), ANY_FILE)


def test_median():
    assert statistics.median(lines(path) for path in FILES) <= MEDIAN
