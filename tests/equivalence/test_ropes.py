"""Dynamic NTK scaling: a document's answer depends on the document alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from retinue.model.lm.causal import CausalLM
from retinue.types import LMInputs

LIMIT = 16


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LIMIT,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )


@pytest.fixture
def models() -> tuple[CausalLM, Any]:
    torch.manual_seed(0)
    theirs = LlamaForCausalLM._from_config(config(), attn_implementation="eager").eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = CausalLM(config()).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def run(lm: CausalLM, ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
    inputs = LMInputs(embeds_BTD=lm.embed(ids), positions_BT=positions, segments_BT=segments)
    return lm.logits(lm(inputs))


def alone(lm: CausalLM, ids: Tensor) -> Tensor:
    positions = torch.arange(len(ids))[None]
    return run(lm, ids[None], positions, torch.ones_like(positions))[0]


@torch.inference_mode()
def test_a_fresh_llama_says_the_same(models: tuple[CausalLM, Any]) -> None:
    ours, theirs = models
    for length in (LIMIT - 4, LIMIT, LIMIT + 1, 2 * LIMIT + 5):
        ids = torch.randint(0, 64, (length,))
        expected = theirs(ids[None]).logits[0]
        torch.testing.assert_close(alone(ours, ids), expected, atol=1e-5, rtol=1e-5)
        theirs(ids[None, :2])  # a short sequence makes transformers' module forget


@torch.inference_mode()
def test_what_came_before_changes_nothing(models: tuple[CausalLM, Any]) -> None:
    ours, theirs = models
    mid, long = torch.randint(0, 64, (LIMIT + 3,)), torch.randint(0, 64, (3 * LIMIT,))
    before, sticks = alone(ours, mid), theirs(mid[None]).logits
    alone(ours, long)
    theirs(long[None])
    assert torch.equal(alone(ours, mid), before)
    assert not torch.allclose(theirs(mid[None]).logits, sticks, atol=1e-3)


@torch.inference_mode()
def test_neighbours_change_nothing(models: tuple[CausalLM, Any]) -> None:
    """Documents of one row, rows of one batch, padding on either side."""
    ours, _ = models
    lengths = (LIMIT + 9, 5, 2 * LIMIT, LIMIT)
    documents = [torch.randint(0, 64, (length,)) for length in lengths]
    wanted = [alone(ours, ids) for ids in documents]
    packed = torch.cat(documents)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    segments = torch.cat([torch.full((n,), k + 1) for k, n in enumerate(lengths)])[None]
    found = run(ours, packed, positions, segments)[0].split(lengths)
    for one, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
    widest = max(lengths)
    for left in (False, True):
        shape = (len(lengths), widest)
        ids, positions, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        places = []
        for row, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            place = slice(widest - length, widest) if left else slice(0, length)
            ids[row, place], segments[row, place] = document, 1
            positions[row, place] = torch.arange(length)
            places.append(place)
        rows = run(ours, ids, positions, segments)
        for row, place in enumerate(places):
            torch.testing.assert_close(rows[row, place], wanted[row], atol=1e-5, rtol=1e-5)
