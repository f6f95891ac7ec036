"""LLaVA's and M3's sampler orders, exact, from the cases that hold `orders.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases import cases, compared

from retinue.data.grouping import by_length, by_modality, even_chunks
from retinue.data.sampler import SAMPLERS, Sizes

pytestmark = pytest.mark.golden

SAMPLER_OF = {
    "group_by_modality": "llava-modality",
    "llava_group_by_length": "llava-length",
    "m3_group_by_length": "m3-length",
    "m3_group_by_modality_auto": "m3-modality-auto",
    "m3_varlen": "m3-varlen",
}
ORDER_CASES = cases("m3-llava", "*", having="orders.jsonl")
CHUNK_CASES = cases("m3-llava", "*", having="split_to_even_chunks.json")


def rows(case: Path) -> list[dict]:
    return [json.loads(line) for line in (case / "orders.jsonl").read_text().splitlines() if line]


def sizes_of(lengths: list[int]) -> Sizes:
    """Sizes whose words have these lengths; the modality samplers read the sign as `views`."""
    n = len(lengths)
    return Sizes(
        tokens=[abs(x) for x in lengths],
        views=[int(x > 0) for x in lengths],
        words=[abs(x) for x in lengths],
        types=[None] * n,
    )


@pytest.mark.parametrize("case", ORDER_CASES, ids=lambda path: path.name)
def test_orders_are_the_originals(case: Path) -> None:
    for row in rows(case):
        sampler = SAMPLERS.get(SAMPLER_OF[row["impl"]])()
        generator = torch.Generator().manual_seed(row["seed"])
        order = sampler.arrange(  # type: ignore[attr-defined]
            row["lengths"], row["batch_size"], row["world_size"], generator
        )
        assert order == row["order"], (row["impl"], row["seed"])
        compared(case)


@pytest.mark.parametrize("case", ORDER_CASES, ids=lambda path: path.name)
def test_sampler_reads_the_modality_from_views(case: Path) -> None:
    for row in rows(case):
        if row["impl"] != "group_by_modality":
            continue
        order = SAMPLERS.get("llava-modality")().order(
            sizes_of(row["lengths"]),
            micro_batch=row["batch_size"],
            num_micro=row["world_size"],
            generator=torch.Generator().manual_seed(row["seed"]),
        )
        assert order == row["order"]


@pytest.mark.parametrize("case", ORDER_CASES, ids=lambda path: path.name)
def test_seeding_the_global_generator_is_the_same(case: Path) -> None:
    by_impl = {"group_by_modality": by_modality, "llava_group_by_length": by_length}
    for row in rows(case):
        if row["impl"] not in by_impl:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(row["seed"])
            order = by_impl[row["impl"]](
                row["lengths"], row["batch_size"], row["world_size"], torch.default_generator
            )
        assert order == row["order"]


@pytest.mark.parametrize("case", CHUNK_CASES, ids=lambda path: path.name)
def test_even_chunks(case: Path) -> None:
    for row in json.loads((case / "split_to_even_chunks.json").read_text()):
        indices = list(range(len(row["lengths"])))
        assert even_chunks(indices, row["lengths"], chunks=row["k"]) == row["out"]
        compared(case)
