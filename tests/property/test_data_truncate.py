"""Truncation keeps pictures whole, keeps a prefix, and refuses to leave nothing to learn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.errors import DataError
from retinue.data.truncate import truncate
from retinue.types import IGNORE, Example, Grid, Item, Span


def example(runs: list[tuple[int, int]], *, tail: int = 0, learn_first: bool = True) -> Example:
    """Text and picture runs in turn: (text length, placeholders); all text but the first learnt."""
    tokens: list[int] = []
    labels: list[int] = []
    spans, items = [], []
    for text, placeholders in [*runs, (tail, 0)]:
        tokens += range(100 + len(tokens), 100 + len(tokens) + text)
        labels += [t if learn_first or t > 100 else IGNORE for t in tokens[len(labels) :]]
        if placeholders:
            spans.append(Span(start=len(tokens), length=placeholders, item=len(items)))
            items.append(Item(pixels={}, grid=Grid(size=(1, 1)), num_tokens=placeholders))
            tokens += [0] * placeholders
            labels += [IGNORE] * placeholders
    weights = [1.0] * len(tokens)
    return Example(
        id="e",
        tokens=tokens,
        labels=labels,
        spans=spans,
        items=items,
        positions=list(range(len(tokens))),
        weights=weights,
    )


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=5),
    st.integers(0, 6),
    st.integers(2, 40),
)
def test_prefix_with_whole_pictures(runs: list[tuple[int, int]], tail: int, limit: int) -> None:
    full = example([(4, 0), *runs], tail=tail)
    short = truncate(full, max_tokens=limit)
    length = len(short.tokens)
    assert length <= limit
    assert short.tokens == full.tokens[:length]
    assert short.labels == full.labels[:length]
    assert short.positions == list(range(length))
    assert short.weights == [1.0] * length
    assert len(short.items) == len(short.spans)
    for number, span in enumerate(short.spans):
        assert span == full.spans[number]
        assert short.items[span.item] is full.items[number]
        assert short.tokens[span.start : span.start + span.length] == [0] * span.length
    assert short.tokens.count(0) == sum(span.length for span in short.spans)
    if length < min(limit, len(full.tokens)):
        assert full.spans[len(short.spans)].start == length


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match=r"sample 'e': truncation to 3 of 11 tokens leaves no tar"):
        truncate(example([(1, 8)], tail=2), max_tokens=3)
    with pytest.raises(DataError, match="leaves no target"):
        truncate(example([(0, 8)], tail=2), max_tokens=3)
