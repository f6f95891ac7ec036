"""SPHINX's files: any number of shards in, any out, two paths over each other, Meta's layout.

Tolerance of the case: 1e-4; ours is 2e-5. What is cut anew has the very bits recorded.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import cases, compared
from sphinx_cases import check_scores, read
from typer.testing import CliRunner

from retinue.cli.convert import app
from retinue.compat.sphinx import SPHINXModel
from retinue.convert.consolidated import Consolidated, shard_files
from retinue.hub.convert import convert
from retinue.hub.load import load

pytestmark = pytest.mark.golden

CASES = cases("sphinx", "*shard*", having="outputs.json")


def folders(case: Path) -> dict[str, list[Path]]:
    """Model -> its folders by number of shards; `<model>_<shards>` is a folder's name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(case.iterdir()):
        name, _, number = path.name.rpartition("_")
        if number.isdigit():
            found.setdefault(name.removesuffix("_meta"), []).append(path)
    return found


def model_of(*paths: Path) -> SPHINXModel:
    return SPHINXModel.from_pretrained(
        list(paths), dtype=torch.float32, device="cpu", max_seq_len=128
    )


def each(kind: str) -> pytest.MarkDecorator:
    found = [
        (case, path)
        for case in CASES
        for paths in folders(case).values()
        for path in paths
        if kind == "all" or (path / "meta.json").exists()
    ]
    return pytest.mark.parametrize(
        ("case", "path"), found, ids=[f"{case.name}-{path.name}" for case, path in found]
    )


@each("all")
@torch.no_grad()
def test_any_number_of_shards(case: Path, path: Path) -> None:
    tensors = read(case)[1]
    model = next(name for name, paths in folders(case).items() if path in paths)
    scores = model_of(path).forward_text(tensors["input_ids"].long())
    check_scores(f"{model}.logits", scores, tensors, atol=2e-5)
    compared(case)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
@torch.no_grad()
def test_later_paths_win(case: Path) -> None:
    """An override's values count, what it has besides is dropped; `base` says the same."""
    tensors = read(case)[1]
    overrides = [path for path in case.iterdir() if path.name.endswith("_override")]
    assert overrides
    for over in overrides:
        base = folders(case)[over.name.removesuffix("_override")][0]
        model = model_of(base, over)
        scores = model.forward_text(tensors["input_ids"].long())
        check_scores(f"{over.name}.logits", scores, tensors, atol=2e-5)
        other, _ = load(over, base=base, dtype=torch.float32)
        ours, same = dict(model.model.named_parameters()), dict(other.named_parameters())
        assert all(torch.equal(ours[name], same[name]) for name in ours)
    compared(case)


@each("full")
def test_cut_anew(case: Path, path: Path, tmp_path: Path) -> None:
    """Every folder becomes every other one of its model: same files, same bits, either way."""
    info = read(case)[0]["info"]
    model = next(name for name, paths in folders(case).items() if path in paths)
    for wanted in folders(case)[model]:
        if not (wanted / "meta.json").exists():
            continue
        number = len(shard_files(wanted))
        plain, ours, back = (tmp_path / f"{kind}{number}" for kind in ("plain", "ours", "back"))
        convert(path, plain, to="sphinx", shards=number)
        convert(path, ours, to="retinue")
        result = CliRunner().invoke(
            app, [str(ours), str(back), "--to", "sphinx", "--shards", str(number)]
        )
        assert result.exit_code == 0, result.output
        for made in (plain, back):
            assert [f.name for f in shard_files(made)] == [f.name for f in shard_files(wanted)]
            for rank, (a, b) in enumerate(zip(shard_files(made), shard_files(wanted), strict=True)):
                ours_there, theirs = Consolidated([a])._pickle(a), Consolidated([b])._pickle(b)
                assert ours_there.keys() == theirs.keys()
                assert all(torch.equal(ours_there[name], theirs[name]) for name in theirs)
                shapes = info[model].get(f"{number}shards.rank{rank}")
                if shapes is not None:
                    assert {f"llma.{n}": list(t.shape) for n, t in ours_there.items()} == shapes
            for name in ("config.json", "meta.json"):
                assert read_json(made / name) == read_json(wanted / name)
            assert (made / "tokenizer.model").read_bytes() == (
                wanted / "tokenizer.model"
            ).read_bytes()
    compared(case)


def read_json(path: Path) -> object:
    import json

    return json.loads(path.read_text("utf-8"))
