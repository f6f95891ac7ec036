"""A hundredth of each campaign: load with vanishing clients, and bad input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["load", "fuzz"])
def test_a_hundredth_holds(name):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"campaign_{name}.py"), "--share", "0.01"],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.stdout.rstrip().endswith(f"campaign_{name} holds"), done.stdout + done.stderr
    assert done.returncode == 0
