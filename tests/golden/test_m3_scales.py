"""M3's nested tokens: counts, pooled features, logits and greedy ids at every recorded scale.

Tolerances as the cases state: features 1e-5, logits 1e-4; counts and ids are exact.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared
from safetensors.torch import load_file
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.decode.loop import complete
from retinue.decode.sampling import SamplingParams
from retinue.hub.elastic import make_elastic
from retinue.hub.load import load
from retinue.model.layouts.newline import NewlineSpec
from retinue.ops.collate import collate
from retinue.ops.grid import unpad_slices
from retinue.ops.spans import respan
from retinue.processor import Processor
from retinue.types import IGNORE, Batch, Example, Grid, Item, Media, TokenShape

IMAGE = -200  # the original's placeholder
FEATURES = {"atol": 1e-5, "rtol": 1e-4}
LOGITS = {"atol": 1e-4, "rtol": 1e-4}


def having(key: str) -> list[Any]:
    found = cases("m3-llava", "*", having="outputs.json")
    return [
        pytest.param(case, id=case.name)
        for case in found
        if (case / "model").exists() and key in json.loads((case / "outputs.json").read_text())
    ]


SCALES = pytest.mark.parametrize("case", having("tokens_for_requested_scale"))
TILED = pytest.mark.parametrize("case", having("m3"))
TABLES = pytest.mark.parametrize("case", having("real_table"))


def opened(case: Path) -> tuple[Any, Processor, dict[str, Any], dict[str, Tensor]]:
    """Model and processor with the original's rounding, and the case's outputs."""
    model, processor = load(case / "model", dtype=torch.float32)
    make_elastic(model, processor, rounding="original")
    outputs = json.loads((case / "outputs.json").read_text())
    return model, processor, outputs, load_file(case / "outputs.safetensors")


def picture(case: Path, processor: Processor, name: str, budget: int | None) -> Item:
    source = str(case / "inputs" / name)
    return processor.item(Media(source=source, budget=budget), where=name)


def names_of(case: Path) -> list[str]:
    return sorted(path.name for path in (case / "inputs").glob("img*.png"))


def asked(processor: Processor, ids: list[int], *items: Item) -> Example:
    places = [(at, n) for n, at in enumerate(at for at, id in enumerate(ids) if id == IMAGE)]
    return processor.expand("golden", ids, [IGNORE] * len(ids), places, items)


def only(processor: Processor, *items: Item) -> Batch:
    """A batch of nothing but pictures."""
    return collate([asked(processor, [IMAGE] * len(items), *items)])


def greedy(model: Any, processor: Processor, made: Example, steps: int) -> list[int]:
    params = SamplingParams(max_new_tokens=steps)
    eos = processor.tokenizer.eos_ids
    answer = complete(model, collate([made]), params=params, decoder=processor, eos_ids=eos)
    return answer[0].tokens


# ------------------------------------------------------------------ one view per picture


@SCALES
def test_tokens_for_every_requested_scale(case: Path) -> None:
    model, _, outputs, _ = opened(case)
    table = {int(k): v for k, v in outputs["tokens_for_requested_scale"].items()}
    assert {asked: model.plan.per_view(asked).length for asked in table} == table
    full = model.plan.per_view().length
    (above,) = [key for key in outputs if key.startswith("errors_for_scale_above")]
    for scale in map(int, outputs[above]):
        with pytest.raises(ConfigError, match=f"nearest is {full}"):
            model.plan.per_view(scale)
    compared(case)


@SCALES
def test_exact_rounding_refuses_what_the_original_rounds(case: Path) -> None:
    """A checkpoint is loaded so: what the grid meets is given, all else named with its nearest."""
    model, _ = load(case / "model")
    table = json.loads((case / "outputs.json").read_text())["tokens_for_requested_scale"]
    config = json.loads((case / "model/config.json").read_text())
    assert model.plan.budgets == sorted(config["matryoshka_vis_token_scale"])
    side = model.plan.per_view().grid[0]
    met = {(side // k) ** 2 for k in range(1, side + 1) if side % k == 0}
    for scale in map(int, table):
        if scale in met:
            assert model.plan.per_view(scale).length == scale
            continue
        nearest = min(abs(scale - known) for known in met)
        with pytest.raises(ConfigError) as error:
            model.plan.per_view(scale)
        named = int(str(error.value).rpartition("nearest is ")[2])
        assert named in met
        assert abs(scale - named) == nearest


@SCALES
@torch.inference_mode()
def test_pooled_features(case: Path) -> None:
    model, processor, _, tensors = opened(case)
    names = names_of(case)
    for key in [key for key in tensors if key.startswith("features.")]:
        expected = tensors[key]
        scale = int(key.removeprefix("features."))
        items = [picture(case, processor, name, scale) for name in names[: len(expected)]]
        words = model.look(only(processor, *items).visual)
        assert words.lengths == [expected.shape[1]] * len(items)
        torch.testing.assert_close(words.x_TD, expected.flatten(0, 1), **FEATURES)


@SCALES
@torch.inference_mode()
def test_logits_and_answers_at_every_scale(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    first, ids = names_of(case)[0], outputs["input_ids"]
    for name, record in outputs["generate"].items():
        scale = None if name == "none" else int(name)
        made = asked(processor, ids, picture(case, processor, first, scale))
        assert len(made.tokens) == record["seq_len"], name
        expected = tensors.get(f"logits_last6.{name}")
        if expected is not None:
            logits = model.run(collate([made])).logits[0, -len(expected) :]
            torch.testing.assert_close(logits, expected, **LOGITS)
        wanted = record["output_ids"][1:]
        assert greedy(model, processor, made, len(wanted)) == wanted, name
    assert len(asked(processor, ids, picture(case, processor, first, None)).tokens) == outputs.get(
        "eval_forward_seq_len_with_config_scales", len(made.tokens)
    )


@SCALES
@torch.inference_mode()
def test_every_scale_in_one_batch(case: Path) -> None:
    """Rows of one batch at budgets of their own; the original needs one call for each."""
    model, processor, outputs, tensors = opened(case)
    first, ids = names_of(case)[0], outputs["input_ids"]
    keys = [key for key in tensors if key.startswith("logits_last6.") and "none" not in key]
    budgets = [int(key.rpartition(".")[2]) for key in keys]
    rows = [asked(processor, ids, picture(case, processor, first, b)) for b in budgets]
    batch = collate(rows, pad_side="left")
    logits = model.run(batch).logits
    for row, key in enumerate(keys):
        torch.testing.assert_close(logits[row, -len(tensors[key]) :], tensors[key], **LOGITS)
    full = collate([asked(processor, ids, picture(case, processor, first, None)) for _ in keys])
    lengths = [
        model.plan.placeholders_for(g, b) for g, b in zip(full.visual.grids, budgets, strict=True)
    ]
    spanned = respan(full, lengths, pad=processor.tokenizer.pad_id, side="left")
    assert torch.equal(spanned.tokens, batch.tokens)
    assert torch.equal(spanned.positions, batch.positions)
    assert torch.equal(spanned.visual.index, batch.visual.index)


# ------------------------------------------------------------------ tiles, newlines, unpadding


@TILED
@torch.inference_mode()
def test_tiles_at_every_scale(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    ids = outputs["input_ids"]
    counts = {key: value for key, value in outputs["m3"].items() if isinstance(value, int)}
    assert counts
    for key, count in counts.items():
        number, _, scale = key.removeprefix("img").partition(".scale")
        file = outputs["images"][int(number)]["file"]
        item = picture(case, processor, file, int(scale))
        assert item.num_tokens == count, key
        expected = tensors.get(f"m3.{key}.features")
        if expected is not None:
            words = model.look(only(processor, item).visual)
            torch.testing.assert_close(words.x_TD, expected, **FEATURES)
        wanted = outputs["m3"][f"{key}.generate"][1:]
        assert greedy(model, processor, asked(processor, ids, item), len(wanted)) == wanted, key
    compared(case)


@TILED
@torch.inference_mode()
def test_pictures_of_one_prompt_at_budgets_of_their_own(case: Path) -> None:
    model, processor, outputs, tensors = opened(case)
    keys = [k.removesuffix(".features") for k in tensors if k.startswith("m3.")]
    items, expected = [], []
    for key in keys:
        number, _, scale = key.removeprefix("m3.img").partition(".scale")
        file = outputs["images"][int(number)]["file"]
        items.append(picture(case, processor, file, int(scale)))
        expected.append(tensors[f"{key}.features"])
    words = model.look(only(processor, *items).visual)
    assert words.lengths == [len(one) for one in expected]
    torch.testing.assert_close(words.x_TD, torch.cat(expected), **FEATURES)


@TABLES
def test_layout_arithmetic_at_reduced_grids(case: Path) -> None:
    outputs = json.loads((case / "outputs.json").read_text())
    for entry in outputs["real_table"]:
        width, height = entry["size"]
        cols, rows = entry["grid"]
        grid = Grid(rows=rows, cols=cols, overview=True, size=(height, width))
        for side, (kept, total) in entry["unpad_hw_and_total_tokens_by_crop_side"].items():
            s = int(side)
            slices = unpad_slices(grid.size, rows=rows * s, cols=cols * s)
            found = [len(range(n * s)[one]) for n, one in zip((rows, cols), slices, strict=True)]
            assert found == kept
            shape = TokenShape(length=s * s, grid=(s, s))
            assert NewlineSpec().num_tokens(grid, shape) == total
    compared(case)
