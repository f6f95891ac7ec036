"""Examples -> Batch: padded rows, or one packed row with document boundaries.

Legend: B rows, T tokens of a row, I items, K documents, N views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retinue.types import IGNORE, Batch, Example, Item, Visual


def collate(
    examples: Sequence[Example],
    *,
    pad_id: int = 0,
    train: bool = False,
    packed: bool = False,
    pad_side: str = "right",
    multiple: int = 1,
) -> Batch:
    """One Batch of all examples. Labels are shifted here: labels[t] is the target of position t.

    packed: one row, documents in order; multiple: the row length is padded up to a multiple of it.
    """
    assert examples, "an empty batch"
    lengths = [len(example.tokens) for example in examples]
    if packed:
        rows, width = [0] * len(examples), sum(lengths)
        firsts = [sum(lengths[:number]) for number in range(len(lengths))]
        documents = list(range(1, len(examples) + 1))
    else:
        rows, width = list(range(len(examples))), max(lengths)
        width = -(-width // multiple) * multiple
        firsts = [width - length if pad_side == "left" else 0 for length in lengths]
        documents = [1] * len(examples)
    total = -(-width // multiple) * multiple
    shape = (1 if packed else len(examples), total)
    tokens = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE, dtype=torch.long)
    weights = torch.ones(shape) if any(e.weights is not None for e in examples) else None
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.zeros(shape, dtype=torch.long)
    for example, row, first, document in zip(examples, rows, firsts, documents, strict=True):
        stop = first + len(example.tokens)
        tokens[row, first:stop] = torch.tensor(example.tokens)
        labels[row, first : stop - 1] = torch.tensor(example.labels[1:], dtype=torch.long)
        positions[row, first:stop] = (
            torch.arange(len(example.tokens))
            if example.positions is None
            else torch.tensor(example.positions)
        )
        segments[row, first:stop] = document
        if weights is not None and example.weights is not None:
            weights[row, first : stop - 1] = torch.tensor(example.weights[1:])
    return Batch(
        ids=[example.id for example in examples],
        tokens=tokens,
        positions=positions,
        segments=segments,
        labels=labels if train else None,
        supervised=(labels.flatten() != IGNORE).nonzero().flatten() if train else None,
        weights=weights if train else None,
        cu_seqlens=boundaries(lengths) if packed and total == width else None,
        visual=collate_visual(examples, rows=rows, firsts=firsts, width=total),
    )


def boundaries(lengths: Sequence[int]) -> Tensor:
    """(K + 1,) int32 cumulative lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def collate_visual(
    examples: Sequence[Example], *, rows: Sequence[int], firsts: Sequence[int], width: int
) -> Visual | None:
    """All pictures flat, in the order of their placeholders; None if there are none."""
    items: list[Item] = []
    spans: list[list[int]] = []
    for example, row, first in zip(examples, rows, firsts, strict=True):
        for span in example.spans:
            items.append(example.items[span.item])
            spans.append([row, first + span.start, span.length])
    if not items:
        return None
    index = [
        torch.arange(row * width + start, row * width + start + length)
        for row, start, length in spans
    ]
    return Visual(
        pixels={
            stream: torch.cat([item.pixels[stream] for item in items]) for stream in items[0].pixels
        },
        grids=[item.grid for item in items],
        budgets=[item.budget for item in items],
        spans=torch.tensor(spans, dtype=torch.long),
        index=torch.cat(index),
    )
