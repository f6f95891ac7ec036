"""Pictures mirrored by chance: a function of seed, epoch and sample; in training only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import tiny
from retinue.core.errors import ConfigError
from retinue.data.augment import Flip
from retinue.data.dataset import open_dataset
from retinue.data.spec import DataSpec
from retinue.processor import Processor
from retinue.types import Media, Message, Sample, Text
from tiny_families import family

ROWS = 12


@pytest.fixture(scope="module")
def processor() -> Processor:
    return family()[1]


def sample(*sources: Any, kind: Any = "image") -> Sample:
    media = tuple(Media(source=one, kind=kind) for one in sources)
    return Sample(id="s", messages=(Message(role="user", parts=(*media, Text(text="which?"))),))


def flipped(one: Sample, processor: Processor, **place: int) -> Sample:
    where = {"seed": 0, "epoch": 0, "index": 0, **place}
    return Flip(share=1.0).apply(one, processor=processor, **where)


def test_every_view_is_mirrored_words_stay(processor: Processor) -> None:
    one = sample(tiny.picture(1), tiny.picture(2))
    two = flipped(one, processor)
    assert [m.text for m in two.messages] == [m.text for m in one.messages]
    for old, new in zip(one.media, two.media, strict=True):
        before = numpy.asarray(old.source.convert("RGB"))  # type: ignore[union-attr]
        assert numpy.array_equal(numpy.asarray(new.source), before[:, ::-1])
        a = processor.item(old, where="a").pixels["rgb"]
        b = processor.item(new, where="b").pixels["rgb"]
        assert not torch.equal(a, b)
        torch.testing.assert_close(a.flip(-1).float(), b.float(), atol=1.0, rtol=0)  # a grey level


def test_a_picture_that_lies_on_its_side_is_turned_first(
    processor: Processor, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny.picture(3).resize((20, 12)).save(tmp_path / "side.png", exif=exif)
    upright = sample(str(tmp_path / "side.png"))
    found = flipped(upright, processor).media[0].source
    assert found.size == (12, 20)  # type: ignore[union-attr]
    item = processor.item(Media(source=found), where="x")
    assert item.grid == processor.item(upright.media[0], where="y").grid


def test_a_video_is_mirrored_in_all_of_its_frames(processor: Processor) -> None:
    frames = tuple(tiny.picture(n) for n in range(3))
    one = sample(frames, kind="video")
    plain, mirrored = processor.unfold(one), flipped(one, processor)
    assert len(mirrored.media) == len(plain.media) > 1
    for old, new in zip(plain.media, mirrored.media, strict=True):
        before = numpy.asarray(old.source.convert("RGB"))  # type: ignore[union-attr]
        assert numpy.array_equal(numpy.asarray(new.source), before[:, ::-1])


def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone(processor: Processor) -> None:
    one = sample(tiny.picture(1))

    def draws(seed: int, epoch: int, share: float = 0.5) -> list[bool]:
        flip = Flip(share=share)
        return [
            flip.apply(one, seed=seed, epoch=epoch, index=k, processor=processor) is not one
            for k in range(400)
        ]

    assert draws(0, 0) == draws(0, 0)
    assert len({tuple(draws(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert 160 < sum(draws(0, 0)) < 240
    assert sum(draws(0, 0, 0.0)) == 0
    assert sum(draws(0, 0, 1.0)) == 400


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    found = []
    for n in range(ROWS):
        tiny.picture(n).save(tmp_path / f"{n}.png")
        turns = [{"from": "human", "value": "<image>\nwhich?"}, {"from": "gpt", "value": "red"}]
        found.append({"id": str(n), "image": f"{n}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(found), "utf-8")
    return tmp_path


def epochs(root: Path, processor: Processor, **changes: Any) -> list[dict[str, torch.Tensor]]:
    """Pictures by sample, of two epochs."""
    spec = {"sources": [{"path": "rows.json"}], **changes}
    data = open_dataset(DataSpec.parse(spec), processor, root=root)
    schedule = data.schedule(global_batch=4, micro_batch=2)
    loader = data.loader(schedule)
    found = []
    for epoch in range(2):
        seen: dict[str, torch.Tensor] = {}
        for batch in loader.epoch(epoch):
            assert batch.visual is not None
            seen |= dict(zip(batch.ids, batch.visual.pixels["rgb"], strict=True))
        found.append(seen)
    return found


def test_a_run_mirrors_some_anew_in_each_epoch(rows: Path, processor: Processor) -> None:
    flip = {"kind": "flip"}
    plain = epochs(rows, processor)
    whole = epochs(rows, processor, augment={"kind": "flip", "share": 1.0})
    mixed = epochs(rows, processor, augment=flip)
    chosen = []
    for a, b, c in zip(plain, whole, mixed, strict=True):
        assert set(a) == set(b) == set(c)
        chosen.append({name for name in a if torch.equal(b[name], c[name])})
        assert all(torch.equal(a[name], c[name]) for name in set(a) - chosen[-1])
    assert 0 < len(chosen[0]) < ROWS
    assert chosen[0] != chosen[1]
    again = epochs(rows, processor, augment=flip, workers=1)
    for a, b in zip(mixed, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_held_out_pictures_stay_as_they_are(rows: Path, processor: Processor) -> None:
    def held(**changes: Any) -> list[torch.Tensor]:
        spec = {"sources": [{"path": "rows.json"}], "validation": "rows.json", **changes}
        data = open_dataset(DataSpec.parse(spec), processor, root=rows)
        batches = data.validation_loader(micro_batch=ROWS).epoch()
        return [b.visual.pixels["rgb"] for b in batches if b.visual is not None]

    (plain,), (same,) = held(), held(augment={"kind": "flip", "share": 1.0})
    assert torch.equal(plain, same)


def test_a_recipe_names_it() -> None:
    spec = {"sources": [{"path": "rows.json"}]}
    with pytest.raises(ConfigError, match="did you mean 'flip'"):
        DataSpec.parse({**spec, "augment": {"kind": "flp"}})
    with pytest.raises(ConfigError, match="share"):
        DataSpec.parse({**spec, "augment": {"kind": "flip", "share": 2}})
