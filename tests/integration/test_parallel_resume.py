"""A sharded run's checkpoints know nothing of the processes: killed on two, resumed on any."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_run
from retinue.hub.load import load
from retinue.train.sinks.jsonl import read_rows
from retinue.train.state import FACTS, TENSORS, Checkpoints
from tiny_ranks import together
from tiny_sharded_run import work

UPDATES = 7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny_run.write_data(folder)
    return folder


def curve(folder: Path) -> list[tuple[float, float]]:
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, UPDATES + 1))
    return [(row["loss"], row["grad_norm"]) for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder / "model")[0].named_parameters())


def assert_same(found: Path, expected: Path) -> None:
    for one, two in zip(curve(found), curve(expected), strict=True):
        assert one == pytest.approx(two, abs=1e-5)
    theirs = weights(found)
    for name, value in weights(expected).items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=0, msg=name)


@pytest.fixture(scope="module")
def alone_(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    together(1, work, root, folder, None, {"shard": "none"})  # no thread of a test beside it draws
    return folder


@pytest.fixture(scope="module")
def killed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two processes whose first was killed: four updates are stored."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    first, second = together(2, work, root, folder, 4, {"shard": "reshard"})
    assert first == -signal.SIGKILL
    assert "another process of this launch has ended" in second
    names = [path.name for path in Checkpoints(folder / "checkpoints").all()]
    assert names == [f"step-{step:08d}" for step in (1, 2, 3, 4)]
    return folder


@pytest.mark.parametrize("count", [1, 2])
def test_killed_on_two_resumes_on_one_and_on_two(
    root: Path, killed: Path, alone_: Path, tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    if count == 1:
        work(0, root, folder, None, {"shard": "none"})
    else:
        together(2, work, root, folder, None, {"shard": "keep"})
    assert_same(folder, alone_)


def test_files_do_not_say_how_many_processes_wrote_them(killed: Path, alone_: Path) -> None:
    for step in (3, 4):  # the end of the first stage, the beginning of the second
        place = Path("checkpoints") / f"step-{step:08d}"
        for name in (TENSORS, "model.safetensors"):
            ours, theirs = (load_file(folder / place / name) for folder in (killed, alone_))
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert (ours[key].dtype, ours[key].shape) == (value.dtype, value.shape), key
                if not key.startswith("random"):
                    torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-4, msg=key)
        facts = [json.loads((folder / place / FACTS).read_text()) for folder in (killed, alone_)]
        assert facts[0] == facts[1]


def test_layouts_follow_each_other(root: Path, alone_: Path, tmp_path: Path) -> None:
    """1 -> 2 -> 4 (a grid of 2 x 2, over the end of the first stage) -> 1."""
    folder = tmp_path / "run"
    (code,) = together(1, work, root, folder, 1, {"shard": "none"})
    assert code == -signal.SIGKILL
    for count, until, parallel in (
        (2, 2, {"shard": "keep"}),
        (4, 5, {"shard": "reshard", "data": 2, "tensor": 2}),
    ):
        first, *others = together(count, work, root, folder, until, parallel)
        assert first == -signal.SIGKILL
        assert all("has ended" in words for words in others)
        assert len(Checkpoints(folder / "checkpoints").all()) == until
    together(1, work, root, folder, None, {"shard": "none"})  # no thread of a test beside it draws
    assert_same(folder, alone_)
