"""`retinue train` by several processes: --processes, torchrun, SLURM; one that dies ends all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny_recipe
from retinue.cli.launch import free_port
from retinue.cli.main import run

STEPS, PATIENCE_S = 3, 150.0
ZERO3 = {
    "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "overlap_comm": True}
}
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rates that do not depend on how long a run is."""
    path = tiny_recipe.shrink("llava15-7b/sft", tmp_path_factory.mktemp("recipe"), steps=STEPS)
    data = yaml.safe_load(path.read_text("utf-8"))
    data["train"]["stages"][0]["schedule"] = {"kind": "constant"}
    path.write_text(yaml.safe_dump(data), "utf-8")
    return path


def start(words: list[str], **environment: Any) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_"))}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env={**clean, **QUIET, **{k: str(v) for k, v in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """(exit code, stderr) of each; none is left behind."""
    try:
        return [
            (process.returncode, error)
            for process in processes
            for _, error in [process.communicate(timeout=PATIENCE_S)]
        ]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def curve(out: Path) -> list[tuple[float, float]]:
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    return [(row["loss"], row["grad_norm"]) for row in rows]


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, float]]:
    """What one process finds, which is this one."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert run(["train", str(recipe), "--out", str(out), "--device", "cpu"]) == 0
    return curve(out)


def assert_same(out: Path, alone: list[tuple[float, float]]) -> None:
    assert len(alone) == STEPS
    for mine, theirs in zip(curve(out), alone, strict=False):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_torchrun(recipe: Path, alone: list[tuple[float, float]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    words = ["-m", "retinue", "train", str(recipe), "parallel.shard=sdp", "--out", str(out)]
    ((code, error),) = finish(start([*launch, *words, "--device", "cpu"]))
    assert code == 0, error
    assert_same(out, alone)


def test_slurm(recipe: Path, alone: list[tuple[float, float]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["retinue", "train", str(recipe), "--tp", "2", "--out", str(out), "--device", "cpu"]
    slurm = {"SLURM_NTASKS": 2, "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": free_port()}
    both = finish(
        *(start(words, **slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in range(2))
    )
    assert [code for code, _ in both] == [0, 0], both
    assert "process 0 of 2 (SLURM), meeting at 127.0.0.1" in both[0][1]
    assert both[1][1] == ""
    assert_same(out, alone)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that a process has started."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                fields = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[1] == str(process.pid) and fields[0] != "Z":
                found.append(int(place.name))
    return found


def test_processes_of_its_own_end_when_one_dies(
    recipe: Path, alone: list[tuple[float, float]], tmp_path: Path
) -> None:
    """They take a DeepSpeed file's settings over, train as one does, and leave one line."""
    zero, out = tmp_path / "zero3.json", tmp_path / "run"
    zero.write_text(json.dumps(ZERO3))
    words = ["retinue", "train", str(recipe), "--processes", "2", "--deepspeed", str(zero)]
    words += ["train.stages.sft.steps=5000", "--out", str(out), "--device", "cpu"]
    process = start(words)
    try:
        late = time.monotonic() + PATIENCE_S
        log = out / "metrics.jsonl"
        while not (log.exists() and len(log.read_text().splitlines()) > STEPS):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < late
            time.sleep(0.1)
        (other,) = children(process)
        os.kill(other, signal.SIGKILL)
    except BaseException:
        process.kill()
        raise
    ((code, error),) = finish(process)
    assert_same(out, alone)
    assert 'stage -> parallel.shard="reshard"' in error
    assert "overlap_comm not mapped: FSDP2 overlaps by itself" in error
    assert "shard=reshard has no effect" not in error
    assert "offload=true has no effect here: main memory" in error
    assert error.count("micro_batch 2 x ranks 2 x accumulation 1") == 1
    assert code == 4
    assert "Traceback" not in error
    said = [line for line in error.splitlines() if line.startswith("retinue:")]
    assert said == [
        "retinue: process 1 of 2 has ended (SIGKILL); "
        "run the same command again to go on from the last checkpoint"
    ]
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "failed"
    assert "another process of this launch has ended" in record["error"]
    assert not Path(f"/proc/{other}").exists()
