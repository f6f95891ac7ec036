"""A preparation that is killed with SIGKILL goes on without loss or duplicates; memory is flat."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_the_middle(tmp_path, monkeypatch, processes):
    """A hundredth of the benchmark: the very command, its process group killed, started again."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    import preprocess_rate

    found = preprocess_rate.measure(tmp_path, records=500, processes=processes)
    assert found["rows_after_going_on"] == 500
    assert 1 <= found["files_when_killed"] < found["files"]
    assert found["records_per_second"] > 0
