"""The real Processor behind the loader: lengths hold, packs hold the padded documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from retinue.data.dataset import open_dataset
from retinue.data.loader import Loader
from retinue.data.spec import DataSpec
from retinue.model.spec import Plan, RetinueConfig
from retinue.processor import Processor, ProcessorSpec
from retinue.types import Batch

TOKENS = 400


@pytest.fixture
def processor(tiny_tokenizer: Any) -> Processor:
    tower = CLIPVisionConfig(
        hidden_size=8,
        image_size=16,
        patch_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    text = LlamaConfig(
        vocab_size=tiny_tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = {
        "encoders": {"clip": {"kind": "clip"}},
        "connector": {"kind": "mlp", "of": {"kind": "take", "encoder": "clip"}},
        "layout": {"kind": "newline"},
        "image_token_id": tiny_tokenizer.image_id,
    }
    spec = ProcessorSpec.parse(
        {
            "views": {"kind": "anyres", "pinpoints": [[32, 32], [32, 16], [16, 32]]},
            "streams": {"rgb": {"size": 16, "mode": "fast"}},
            "template": "vicuna_v1",
        }
    )
    config = RetinueConfig(text, {"clip": tower}, model)
    return Processor(Plan(config), tokenizer=tiny_tokenizer, spec=spec)


@pytest.fixture
def folder(tmp_path: Path, draw: Any) -> Path:
    rows = []
    for i in range(9):
        question = f"what colour is circle {i}?"
        row: dict[str, Any] = {"id": f"s{i}"}
        if i % 3:
            draw(20 + 9 * i, 60, seed=i).save(tmp_path / f"{i}.png")
            row["image"] = f"{i}.png"
            question = f"<image>\n{question}"
        answer = "the circle is red " * (i + 1)
        row["conversations"] = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer.strip()},
        ]
        rows.append(row)
    (tmp_path / "d.json").write_text(json.dumps(rows))
    return tmp_path


def loader(folder: Path, processor: Processor, **changes: object) -> Loader:
    spec = DataSpec.parse({"sources": [{"path": "d.json"}], "max_tokens": TOKENS, **changes})
    data = open_dataset(spec, processor, root=folder, cache=folder / "cache")
    return data.loader(data.schedule(global_batch=3, micro_batch=3))


def documents(batch: Batch) -> dict[str, tuple[Any, ...]]:
    """id -> (tokens, labels, positions) of every document, padded or packed."""
    assert batch.labels is not None
    rows = batch.tokens.shape[0]
    found = {}
    for number, name in enumerate(batch.ids):
        row, segment = (number, 1) if rows > 1 else (0, number + 1)
        at = batch.segments[row] == segment
        found[name] = tuple(
            tensor[row][at].tolist() for tensor in (batch.tokens, batch.labels, batch.positions)
        )
    return found


def read(made: Loader) -> tuple[dict[str, tuple[Any, ...]], list[Batch]]:
    batches = list(made.epoch(0))
    return {k: v for batch in batches for k, v in documents(batch).items()}, batches


@pytest.mark.parametrize("packing", ["step", "window"])
def test_packs_hold_the_padded_documents(folder: Path, processor: Processor, packing: str) -> None:
    padded, _ = read(loader(folder, processor))
    packed, batches = read(loader(folder, processor, packing=packing))
    assert packed == padded
    assert len(padded) == 9
    for batch in batches:
        assert batch.tokens.shape[0] == 1
        assert batch.tokens.shape[1] <= TOKENS
        assert batch.cu_seqlens is not None
        assert batch.visual is None or batch.visual.pixels["rgb"].dtype == torch.uint8


def test_lengths_from_headers_are_the_lengths_of_the_batches(
    folder: Path, processor: Processor
) -> None:
    made = loader(folder, processor, sampler="sequential", workers=1)
    documents_, _ = read(made)
    sizes = made.samples.sizes  # type: ignore[attr-defined]
    assert [len(documents_[f"s{i}"][0]) for i in range(9)] == sizes.tokens
    assert sizes.views[0] == 0
    assert max(sizes.views) > 1


def test_workers_change_nothing(folder: Path, processor: Processor) -> None:
    here = read(loader(folder, processor, packing="window"))[1]
    there = read(loader(folder, processor, packing="window", workers=2))[1]
    for one, other in zip(here, there, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.tokens, other.tokens)
        if one.visual is not None:
            assert other.visual is not None
            assert torch.equal(one.visual.pixels["rgb"], other.visual.pixels["rgb"])
            assert one.visual.grids == other.visual.grids
