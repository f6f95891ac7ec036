"""respan: a batch built with other lengths, without building it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retinue.ops.spans import positions_from_segments, respan, supervised_index
from retinue.types import IGNORE, Batch, Grid, Visual

PLACEHOLDER, PAD = 99, 7

# a document: texts with a run of placeholders between each and the next
Document = list[list[int]]
texts = st.lists(st.integers(1, 50), min_size=0, max_size=4)
documents = st.lists(texts, min_size=1, max_size=4).filter(lambda d: len(d) > 1 or d[0])
rows = st.lists(st.lists(documents, min_size=1, max_size=3), min_size=1, max_size=3)


@dataclass
class Layout:
    rows: list[list[Document]]
    packed: bool
    left: bool

    @property
    def num_spans(self) -> int:
        return sum(len(document) - 1 for row in self.rows for document in row)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    found = draw(rows)
    packed = draw(st.booleans())
    return Layout(found[:1] if packed else found, packed, draw(st.booleans()))


def build(layout: Layout, lengths: list[int]) -> Batch:
    """The batch by its definition, token by token."""
    left_over, lines, runs = list(lengths), [], []
    for number, row in enumerate(layout.rows):
        line: list[tuple[int, int, int, float]] = []  # token, segment, label, weight
        for segment, document in enumerate(row, start=1):
            ids: list[int] = []
            for at, text in enumerate(document):
                if at:
                    runs.append((number, len(line) + len(ids), left_over[0]))
                    ids += [PLACEHOLDER] * left_over.pop(0)
                ids += text
            targets = [*ids[1:], PLACEHOLDER]
            labels = [IGNORE if t == PLACEHOLDER or t % 3 == 0 else t for t in targets]
            weights = [0.0 if label == IGNORE else label / 2 for label in labels]
            line += zip(ids, [segment] * len(ids), labels, weights, strict=True)
        lines.append(line)
    longest = max(map(len, lines))
    padding = (PAD, 0, IGNORE, 0.0)
    shifts = [longest - len(line) if layout.left else 0 for line in lines]
    spans = [(row, start + shifts[row], n) for row, start, n in runs]
    for at, line in enumerate(lines):
        blank = [padding] * (longest - len(line))
        lines[at] = blank + line if layout.left else line + blank
    tokens, segments, all_labels, all_weights = (
        torch.tensor([[cell[k] for cell in line] for line in lines]) for k in range(4)
    )
    table = torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)
    index = [row * longest + start + k for row, start, n in spans for k in range(n)]
    sizes = [int((segments == k + 1).sum()) for k in range(len(layout.rows[0]))]
    ends = torch.tensor([0, *sizes]).cumsum(0).int()
    return Batch(
        ids=["x"],
        tokens=tokens,
        positions=positions_from_segments(segments),
        segments=segments,
        labels=all_labels,
        supervised=supervised_index(all_labels),
        weights=all_weights,
        cu_seqlens=ends if layout.packed else None,
        visual=Visual(
            pixels={},
            grids=[Grid(size=(1, 1))] * len(lengths),
            budgets=[None] * len(lengths),
            spans=table,
            index=torch.tensor(index, dtype=torch.int64),
        ),
    )


def assert_same(a: object, b: object, name: str = "batch") -> None:
    assert type(a) is type(b), name
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        assert a.dtype == b.dtype, name
        assert a.tolist() == b.tolist(), name
    elif isinstance(a, Batch | Visual):
        for field in fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name), field.name)
    else:
        assert a == b, name


def some_lengths(data: st.DataObject, layout: Layout) -> list[int]:
    n = layout.num_spans
    return data.draw(st.lists(st.integers(1, 6), min_size=n, max_size=n))


@settings(max_examples=150, deadline=None)
@given(layout=layouts(), data=st.data())
def test_respan_is_building_with_other_lengths(layout: Layout, data: st.DataObject) -> None:
    a, b = some_lengths(data, layout), some_lengths(data, layout)
    side = "left" if layout.left else "right"
    assert_same(respan(build(layout, a), b, pad=PAD, side=side), build(layout, b))


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), data=st.data())
def test_respan_twice_is_respan_once(layout: Layout, data: st.DataObject) -> None:
    batch = build(layout, some_lengths(data, layout))
    a, b = some_lengths(data, layout), some_lengths(data, layout)
    side = "left" if layout.left else "right"
    twice = respan(respan(batch, a, pad=PAD, side=side), b, pad=PAD, side=side)
    assert_same(twice, respan(batch, b, pad=PAD, side=side))


@settings(max_examples=50, deadline=None)
@given(layout=layouts(), data=st.data())
def test_respan_sees_the_side_of_the_padding(layout: Layout, data: st.DataObject) -> None:
    a, b = some_lengths(data, layout), some_lengths(data, layout)
    batch = build(layout, a)
    if bool((batch.segments == 0).any()):
        assert_same(respan(batch, b, pad=PAD), build(layout, b))
