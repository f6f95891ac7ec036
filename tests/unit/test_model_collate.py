"""Examples -> Batch: shapes, shifts and boundaries, on numbers that can be read."""

from __future__ import annotations

import torch

from retinue.ops.collate import collate
from retinue.types import IGNORE, Example, Grid, Item, Span


def example(
    id: str, tokens: list[int], *, answer: int, weights: list[float] | None = None
) -> Example:
    """The last `answer` tokens are targets."""
    labels = [IGNORE] * (len(tokens) - answer) + tokens[len(tokens) - answer :]
    return Example(id=id, tokens=tokens, labels=labels, weights=weights)


ONE = example("one", [5, 6, 7], answer=1)
TWO = example("two", [8, 9, 10, 11, 12], answer=2)


def test_padded_on_either_side() -> None:
    right = collate([ONE, TWO], pad_id=3, train=True)
    assert right.tokens.tolist() == [[5, 6, 7, 3, 3], [8, 9, 10, 11, 12]]
    assert right.segments.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert right.positions.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert right.labels is not None
    assert right.labels[0].tolist() == [IGNORE, 7, IGNORE, IGNORE, IGNORE]
    assert right.labels[1].tolist() == [IGNORE, IGNORE, 11, 12, IGNORE]
    assert right.supervised is not None
    assert right.supervised.tolist() == [1, 7, 8]
    assert right.cu_seqlens is None
    left = collate([ONE, TWO], pad_id=3, train=True, pad_side="left")
    assert left.tokens[0].tolist() == [3, 3, 5, 6, 7]
    assert left.positions[0].tolist() == [0, 0, 0, 1, 2]
    assert left.labels is not None
    assert left.labels[0].tolist() == [IGNORE, IGNORE, IGNORE, 7, IGNORE]


def test_packed_never_predicts_across_documents() -> None:
    batch = collate([ONE, TWO], train=True, packed=True)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2]]
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.tolist() == [0, 3, 8]
    assert batch.labels is not None
    assert batch.labels[0, 2] == IGNORE  # the last of `one` does not predict the first of `two`
    tail = collate([ONE, TWO], packed=True, multiple=16)
    assert tail.tokens.shape == (1, 16)
    assert tail.cu_seqlens is None
    assert tail.num_real == 8


def test_rows_grow_to_a_multiple() -> None:
    assert collate([ONE, TWO], multiple=4).tokens.shape == (2, 8)


def test_weights_follow_their_targets() -> None:
    heavy = example("heavy", [5, 6, 7], answer=2, weights=[9.0, 2.0, 3.0])
    batch = collate([heavy, TWO], train=True)
    assert batch.weights is not None
    assert batch.weights[0, :2].tolist() == [2.0, 3.0]
    assert batch.weights[1].tolist() == [1.0] * 5
    assert collate([ONE, TWO], train=True).weights is None


def test_pictures_stand_where_their_placeholders_do() -> None:
    def seen(id: str, spans: list[Span], level: int) -> Example:
        pixels = torch.full((1, 3, 2, 2), level, dtype=torch.uint8)
        items = [
            Item(pixels={"rgb": pixels + n}, grid=Grid(size=(2, 2)), num_tokens=2)
            for n in range(len(spans))
        ]
        tokens = [7] * 6
        return Example(id=id, tokens=tokens, labels=tokens, spans=spans, items=items)

    # the second example shows its pictures in the other order
    first = seen("a", [Span(start=1, length=2, item=0)], 10)
    second = seen("b", [Span(start=0, length=2, item=1), Span(start=3, length=2, item=0)], 20)
    for packed, wanted in ((False, [1, 2, 6, 7, 9, 10]), (True, [1, 2, 6, 7, 9, 10])):
        visual = collate([first, second], packed=packed).visual
        assert visual is not None
        assert visual.index.tolist() == wanted
        assert visual.pixels["rgb"][:, 0, 0, 0].tolist() == [10, 21, 20]
        rows = [0, 0, 0] if packed else [0, 1, 1]
        assert visual.spans[:, 0].tolist() == rows
    left = collate([ONE, second], pad_side="left").visual
    assert left is not None
    assert left.spans[:, 1].tolist() == [0, 3]
    assert collate([ONE, TWO]).visual is None
