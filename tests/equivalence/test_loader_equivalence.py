"""The loader: workers change nothing, resuming changes nothing, ranks share the same steps."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from fake_processor import FakeProcessor
from retinue.core.errors import DataError, MediaError
from retinue.data.dataset import Dataset, open_dataset
from retinue.data.loader import Loader
from retinue.data.mixture import Mixture
from retinue.data.spec import DataSpec
from retinue.types import IGNORE, Batch

COUNT = 11


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for i in range(COUNT):
        user = [{"type": "text", "text": f"question {i}"}]
        if i % 3:
            Image.new("RGB", (5 + i, 7), (i, 2 * i, 99)).save(tmp_path / f"{i}.png")
            user.insert(0, {"type": "image", "image": f"{i}.png"})
        answer = {"role": "assistant", "content": " ".join(["a"] * (i + 1))}
        rows.append({"id": f"s{i}", "messages": [{"role": "user", "content": user}, answer]})
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def opened(folder: Path, **changes: object) -> Dataset:
    spec = DataSpec.parse({"sources": [{"path": "d.jsonl"}], **changes})
    return open_dataset(spec, FakeProcessor(), root=folder)


def loader(folder: Path, *, rank: int = 0, world: int = 1, **changes: object) -> Loader:
    data = opened(folder, **changes)
    return data.loader(data.schedule(global_batch=4, micro_batch=2), rank=rank, world=world)


def plain(batch: Batch) -> tuple[object, ...]:
    pixels = None if batch.visual is None else batch.visual.pixels["rgb"].tolist()
    assert batch.labels is not None
    return batch.ids, batch.tokens.tolist(), batch.labels.tolist(), pixels


def record(made: Loader, steps: int) -> list[tuple[int, list[tuple[object, ...]]]]:
    return [(step, [plain(b) for b in batches]) for step, batches in islice(made.steps(), steps)]


@pytest.mark.parametrize("packing", ["none", "step", "window"])
def test_workers_change_nothing(folder: Path, packing: str) -> None:
    changes = {"packing": packing, "max_tokens": 24}
    torch.manual_seed(5)
    here = record(loader(folder, workers=0, **changes), 5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert record(loader(folder, workers=2, **changes), 5) == here
    assert torch.equal(torch.rand(1), drawn)
    assert [step for step, _ in here] == [0, 1, 2, 3, 4]


def test_resumed_is_straight(folder: Path) -> None:
    straight = record(loader(folder), 8)
    stopped = loader(folder)
    record(stopped, 4)
    assert stopped.state() == {"step": 4}
    resumed = loader(folder)
    resumed.load_state(stopped.state())
    assert record(resumed, 4) == straight[4:]
    single = loader(folder)
    flat = [plain(batch) for batch in islice(single, 3)]
    assert flat == [batch for _, batches in straight[:2] for batch in batches][:3]
    assert single.state() == {"step": 1}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_the_steps_of_one_process(folder: Path, world: int) -> None:
    alone = record(loader(folder), 6)
    shared = [record(loader(folder, rank=rank, world=world), 6) for rank in range(world)]
    for step in range(6):
        ids = sorted(
            name
            for rank in range(world)
            for names, _, labels, _ in shared[rank][step][1]
            if any(label != IGNORE for row in labels for label in row)
            for name in names
        )
        assert ids == sorted(name for names, *_ in alone[step][1] for name in names)
        assert len({len(shared[rank][step][1]) for rank in range(world)}) == 1


def test_pixels_travel_as_bytes(folder: Path) -> None:
    batch = next(iter(loader(folder, sampler="sequential")))
    assert batch.visual is not None
    assert batch.visual.pixels["rgb"].dtype == torch.uint8


def test_broken_picture_stops_or_is_skipped_and_listed(folder: Path) -> None:
    data = opened(folder, on_error="skip", sampler="sequential", workers=1)
    strict = opened(folder, sampler="sequential", workers=1)
    for name in ("4.png", "5.png", "7.png"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:40])
    made = data.loader(data.schedule(global_batch=2, micro_batch=2))
    steps = list(made.steps(4))
    assert [one.id for one in made.skipped] == ["s4", "s5", "s7"]
    assert "7.png" in made.skipped[-1].reason
    stand_in = steps[2][1][0]
    assert stand_in.labels is not None
    assert (stand_in.labels == IGNORE).all()
    assert steps[3][1][0].ids == ["s6"]
    with pytest.raises(MediaError, match=r"sample 's4': 4\.png: the image is broken"):
        list(strict.loader(strict.schedule(global_batch=2)).steps(4))


def test_all_samples_broken(folder: Path) -> None:
    data = opened(folder, on_error="skip", validation=None)
    for sample in range(COUNT):
        (folder / f"{sample}.png").unlink(missing_ok=True)
    pictured = [row for row in range(COUNT) if row % 3]
    data = replace(data, train=Mixture([replace(data.train.sources[0], rows=pictured)]))
    with pytest.raises(DataError, match=r"no sample can be read .*data check"):
        next(iter(data.loader(data.schedule(global_batch=2))))


def test_long_examples_are_cut_outside_pictures(folder: Path) -> None:
    made = loader(folder, max_tokens=7, sampler="sequential")
    for _, batches in made.steps(3):
        for batch in batches:
            assert batch.tokens.shape[1] <= 7
    with pytest.raises(DataError, match=r"sample 's1'.*truncation to 5 of 7 .*no target"):
        list(loader(folder, max_tokens=5, sampler="sequential").steps(3))


def test_validation_epoch_reads_every_sample_once_in_order(folder: Path) -> None:
    data = opened(folder, validation="d.jsonl")
    made = data.validation_loader(micro_batch=4)
    for epoch in (0, 1):
        ids = [name for batch in made.epoch(epoch) for name in batch.ids]
        assert ids == [f"s{i}" for i in range(COUNT)]
    assert made.state() == {"step": 0}
