"""The length index, its cache, the error policies, the recipe branch and the split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fake_processor import FakeProcessor
from retinue.core.errors import ConfigError, DataError, EnvError, MediaError
from retinue.data.dataset import open_dataset
from retinue.data.formats import open_format
from retinue.data.index import LengthIndex, build_index, cached_index
from retinue.data.mixture import held_out
from retinue.data.spec import DataSpec


def write_llava(folder: Path, *, count: int = 6, missing: tuple[int, ...] = ()) -> Path:
    """Samples s0.. with i + 3 words in all; the even ones have a picture."""
    rows = []
    for i in range(count):
        row = {"id": f"s{i}", "conversations": [{"from": "human", "value": "what ?"}]}
        row["conversations"].append({"from": "gpt", "value": " ".join(["word"] * (i + 1))})
        if i % 2 == 0:
            row["image"] = f"{i}.png"
            row["conversations"][0]["value"] = "<image>\nwhat ?"
            if i not in missing:
                Image.new("RGB", (8 + i, 6)).save(folder / f"{i}.png")
        rows.append(row)
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return path


def test_index_measures_tokens_views_and_words(tmp_path: Path) -> None:
    source = open_format(write_llava(tmp_path))
    calls: list[tuple[int, int]] = []
    index = build_index(source, FakeProcessor(), progress=lambda done, n: calls.append((done, n)))
    assert index.ids == [f"s{i}" for i in range(6)]
    assert index.tokens == [2 + i + 1 + (3 if i % 2 == 0 else 0) for i in range(6)]
    assert index.views == [1, 0, 1, 0, 1, 0]
    assert index.words == [2 + i + 1 + (1 if i % 2 == 0 else 0) for i in range(6)]
    assert calls == [(6, 6)]
    assert build_index(source, FakeProcessor(), workers=2) == index
    assert len(build_index(source, FakeProcessor(), limit=2)) == 2


def test_error_policies(tmp_path: Path) -> None:
    source = open_format(write_llava(tmp_path, missing=(2, 4)))
    with pytest.raises(MediaError, match=r"sample 's2': 2\.png: there is no such image"):
        build_index(source, FakeProcessor(), workers=1)
    index = build_index(source, FakeProcessor(), on_error="skip")
    assert [(one.index, one.id) for one in index.skipped] == [(2, "s2"), (4, "s4")]
    assert "no such image" in index.skipped[0].reason
    assert index.tokens[2] == 0


class Counting(FakeProcessor):
    calls = 0

    def length(self, sample):  # type: ignore[no-untyped-def]
        Counting.calls += 1
        return super().length(sample)


def test_cache_is_keyed_by_contents_and_retries_what_failed(tmp_path: Path) -> None:
    path = write_llava(tmp_path, missing=(2,))
    cache = tmp_path / "cache"

    def index(fingerprint: str = "p", on_error: str = "skip") -> LengthIndex:
        Counting.calls = 0
        return cached_index(
            open_format(path),
            Counting(),
            path=path,
            cache=cache,
            fingerprint=fingerprint,
            on_error=on_error,
        )

    first = index()
    assert Counting.calls == 6
    assert index() == first
    assert Counting.calls == 1
    with pytest.raises(MediaError, match="no such image"):
        index(on_error="error")
    Image.new("RGB", (4, 4)).save(tmp_path / "2.png")
    mended = index(on_error="error")
    assert (mended.skipped, mended.tokens[2]) == ([], 8)
    index()
    assert Counting.calls == 0
    index(fingerprint="other")
    assert Counting.calls == 6
    write_llava(tmp_path, count=7)
    assert len(index()) == 7


def test_damaged_cache_is_made_anew_and_an_unwritable_one_is_named(tmp_path: Path) -> None:
    path = write_llava(tmp_path)
    cache = tmp_path / "cache"

    def index(where: Path) -> LengthIndex:
        return cached_index(
            open_format(path), FakeProcessor(), path=path, cache=where, fingerprint="p"
        )

    first = index(cache)
    (stored,) = cache.iterdir()
    stored.write_bytes(stored.read_bytes()[:100])
    assert index(cache) == first
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match=r"file/lengths-.*: the length index cannot be written"):
        index(tmp_path / "file")


def test_dataset_skips_splits_and_reports(tmp_path: Path) -> None:
    write_llava(tmp_path, count=40, missing=(2,))
    spec = DataSpec(sources=[{"path": "data.json"}], on_error="skip", validation=0.3)
    data = open_dataset(spec, FakeProcessor(), root=tmp_path)
    assert data.validation is not None
    train = {data.train.id(i) for i in range(len(data.train))}
    held = {data.validation.id(i) for i in range(len(data.validation))}
    assert len(train) + len(held) == 39
    assert not train & held
    assert 4 <= len(held) <= 20
    assert held == {f"s{i}" for i in range(40) if held_out(f"s{i}", fraction=0.3) and i != 2}
    assert [one.id for one in data.skipped["data.json"]] == ["s2"]
    assert data.train[0].id == data.train.id(0)


def test_validation_from_another_file_and_empty_splits(tmp_path: Path) -> None:
    write_llava(tmp_path, count=4)
    sources = [{"path": "data.json"}]
    other = DataSpec(sources=sources, validation="data.json")
    data = open_dataset(other, FakeProcessor(), root=tmp_path)
    assert data.validation is not None
    assert len(data.validation) == len(data.train) == 4
    none = DataSpec(sources=sources, validation=1e-9)
    with pytest.raises(DataError, match=r"no validation sample .*change 'validation'"):
        open_dataset(none, FakeProcessor(), root=tmp_path)


def test_held_out_is_a_stable_fraction() -> None:
    chosen = [held_out(f"id-{i}", fraction=0.2) for i in range(4000)]
    assert abs(sum(chosen) / 4000 - 0.2) < 0.03
    assert chosen[:50] == [held_out(f"id-{i}", fraction=0.2) for i in range(50)]
    assert chosen != [held_out(f"id-{i}", fraction=0.2, seed=1) for i in range(4000)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "window"}, "packing needs max_tokens"),
        ({"validation": 1.5}, "fraction between 0 and 1"),
        ({"sampler": "shufle"}, "did you mean 'shuffle'"),
        ({"sources": [{"path": "a", "format": "lava"}]}, "did you mean 'llava'"),
        ({"sources": [{"path": "a", "ratio": 0}]}, "sources.0.ratio"),
        ({"sources": [{"path": "a", "ration": 1}]}, "did you mean 'ratio'"),
        ({"sources": []}, "sources"),
        ({"maxtokens": 3}, "did you mean 'max_tokens'"),
    ],
)
def test_recipe_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^recipe: ") as caught:
        DataSpec.parse({"sources": [{"path": "a"}], **change}, where="recipe")
    assert message in str(caught.value)
