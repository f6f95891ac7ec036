"""Placing values at placeholders and counting positions."""

from __future__ import annotations

import pytest
import torch

from retinue.ops.spans import (
    find_runs,
    gather_tokens,
    positions_from_segments,
    respan,
    scatter_tokens,
    span_index,
    supervised_index,
)
from retinue.types import IGNORE, Batch, Grid, Visual


def test_find_runs() -> None:
    assert find_runs([9, 9, 1, 9, 2, 2, 9, 9, 9], placeholder=9) == [(0, 2), (3, 1), (6, 3)]
    assert find_runs([1, 2], placeholder=9) == []


def test_positions_restart_in_every_document() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2], [1, 2, 2, 2, 0]])
    assert positions_from_segments(segments).tolist() == [[0, 0, 0, 1, 0], [0, 0, 1, 2, 0]]


def test_scatter_places_and_passes_gradients_to_both() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    values = torch.randn(2, 4, requires_grad=True)
    index = span_index(torch.tensor([[0, 2, 1], [1, 0, 1]]), T=3)
    assert index.tolist() == [2, 3]
    out = scatter_tokens(x, values, index)
    torch.testing.assert_close(gather_tokens(out, index), values)
    torch.testing.assert_close(out[0, :2], x[0, :2])
    torch.testing.assert_close(out[1, 1:], x[1, 1:])
    out.sum().backward()
    assert values.grad is not None
    assert x.grad is not None
    assert values.grad.eq(1).all()
    assert x.grad.sum() == 4 * 4


def test_supervised_index_is_flat_and_ordered() -> None:
    labels = torch.tensor([[IGNORE, 3, IGNORE], [5, IGNORE, 0]])
    assert supervised_index(labels).tolist() == [1, 3, 5]


def example() -> Batch:
    """`1 <i><i> 2 3` and `4 <i> 5`, labels shifted, the second row padded on the right."""
    return Batch(
        ids=["a", "b"],
        tokens=torch.tensor([[1, 9, 9, 2, 3], [4, 9, 5, 0, 0]]),
        positions=torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]),
        segments=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        labels=torch.tensor([[-100, -100, 2, 3, -100], [-100, 5, -100, -100, -100]]),
        supervised=torch.tensor([2, 3, 6]),
        visual=Visual(
            pixels={},
            grids=[Grid(size=(1, 1))] * 2,
            budgets=[None, None],
            spans=torch.tensor([[0, 1, 2], [1, 1, 1]]),
            index=torch.tensor([1, 2, 6]),
        ),
    )


def test_respan_moves_everything() -> None:
    out = respan(example(), [1, 3])
    assert out.visual is not None
    assert out.labels is not None
    assert out.supervised is not None
    assert out.tokens.tolist() == [[1, 9, 2, 3, 0], [4, 9, 9, 9, 5]]
    assert out.labels.tolist() == [[-100, 2, 3, -100, -100], [-100, -100, -100, 5, -100]]
    assert out.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert out.segments.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert out.supervised.tolist() == [1, 2, 8]
    assert out.visual.spans.tolist() == [[0, 1, 1], [1, 1, 3]]
    assert out.visual.index.tolist() == [1, 6, 7, 8]


def test_respan_to_the_same_lengths_changes_nothing() -> None:
    batch = example()
    out = respan(batch, [2, 1])
    for name in ("tokens", "labels", "positions", "segments", "supervised"):
        assert getattr(out, name).tolist() == getattr(batch, name).tolist()


def test_respan_wants_a_length_for_every_span() -> None:
    with pytest.raises(AssertionError, match="1 lengths for 2 spans"):
        respan(example(), [1])
    with pytest.raises(AssertionError, match="at least one"):
        respan(example(), [0, 1])
