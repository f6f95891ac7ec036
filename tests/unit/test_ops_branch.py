"""A batch laid out as trees: what is copied where, and what later uses may rely on."""

from __future__ import annotations

from dataclasses import replace

import torch

from retinue.ops.branch import Variant, branch_out
from retinue.ops.collate import collate
from retinue.ops.plan import plan_documents
from retinue.types import IGNORE, Batch, Example, Grid, Item, Span

IMAGE = 99
GRID = Grid(size=(4, 4))


def example(id: str, tokens: list[int], *, trained: int = 2) -> Example:
    """Runs of IMAGE are pictures; the last `trained` tokens are targets."""
    spans, items = [], []
    for at, token in enumerate(tokens):
        if token == IMAGE and (at == 0 or tokens[at - 1] != IMAGE):
            length = next((n for n, t in enumerate(tokens[at:]) if t != IMAGE), len(tokens) - at)
            spans.append(Span(start=at, length=length, item=len(items)))
            pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
            items.append(Item(pixels={"rgb": pixels}, grid=GRID, num_tokens=length))
    labels = [IGNORE] * (len(tokens) - trained) + tokens[-trained:]
    return Example(id=id, tokens=tokens, labels=labels, spans=spans, items=items)


def batch(*, packed: bool) -> Batch:
    examples = [
        example("text", [1, 2, 3]),
        example("late", [11, 12, 13, IMAGE, IMAGE, 14, 15]),
        example("early", [21, IMAGE, IMAGE, 22, IMAGE, IMAGE, 23]),
    ]
    return collate(examples, train=True, packed=packed)


VARIANTS = [Variant(budget=1, lengths=[1, 1, 1]), Variant(budget=3, lengths=[3, 3, 2])]
X = IMAGE


def test_rows_are_laid_out_variant_by_variant() -> None:
    for packed in (False, True):
        row, groups = branch_out(batch(packed=packed), VARIANTS, trunk=3, weight=0.5)
        late = [11, 12, 13, X, 14, 15, X, X, X, 14, 15]
        early = [21, X, 22, X, 23, 21, X, X, X, 22, X, X, 23]
        assert row.tokens.tolist() == [[1, 2, 3, *late, *early]]
        assert row.segments.tolist() == [[1] * 3 + [2] * 11 + [3] * 5 + [4] * 8]
        assert row.branches is not None
        assert row.branches.tolist() == [[0] * 6 + [1] * 3 + [2] * 5 + [0] * 13]
        assert groups.tolist() == [0] * 6 + [1] * 3 + [2] * 5 + [1] * 5 + [2] * 8
        positions = [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, *range(5), *range(8)]
        assert row.positions.tolist() == [positions]
        assert row.cu_seqlens is not None
        assert row.cu_seqlens.tolist() == [0, 3, 14, 19, 27]
        assert row.labels is not None
        assert row.supervised is not None
        assert row.weights is not None
        targets = row.labels[0, row.supervised].tolist()
        assert targets == [2, 3, 14, 15, 14, 15, 23, 23]
        assert row.weights[0, row.supervised].tolist() == [1.0] * 2 + [0.5] * 6


def test_items_share_their_pictures() -> None:
    given = batch(packed=True)
    row, _ = branch_out(given, VARIANTS, trunk=None)
    assert row.branches is None
    assert row.visual is not None
    assert given.visual is not None
    assert row.visual.shown == [0, 1, 2, 0, 1, 2]
    assert row.visual.budgets == [1, 1, 1, 3, 3, 3]
    assert row.visual.pixels["rgb"] is given.visual.pixels["rgb"]
    assert row.visual.spans[:, 2].tolist() == [1, 1, 1, 3, 3, 2]
    assert row.tokens[0, row.visual.index].tolist() == [X] * 11
    alone, groups = branch_out(given, VARIANTS[1:], trunk=None, text_only=False)
    assert alone.tokens[0, :3].tolist() == [11, 12, 13]
    assert set(groups.tolist()) == {1}


def test_a_branch_sees_its_trunk_and_itself() -> None:
    row, _ = branch_out(batch(packed=True), VARIANTS, trunk=3)
    plan = plan_documents(row.segments, cu_seqlens=row.cu_seqlens, branches_BT=row.branches)
    mask = plan.dense(27, 27, torch.device("cpu"))
    assert mask is not None
    seen = [line.nonzero().flatten().tolist() for line in mask[0]]
    assert seen[5] == [3, 4, 5]
    assert seen[8] == [3, 4, 5, 6, 7, 8]
    assert seen[9] == [3, 4, 5, 9]
    assert seen[13] == [3, 4, 5, 9, 10, 11, 12, 13]
    assert seen[14] == [14]


def test_trees_in_padded_rows_and_several_rows() -> None:
    segments = torch.tensor([[1, 1, 1, 1, 2], [0, 3, 3, 3, 3]])
    branches = torch.tensor([[0, 1, 1, 2, 0], [0, 0, 0, 1, 2]])
    plan = plan_documents(segments, branches_BT=branches)
    mask = plan.dense(5, 5, torch.device("cpu"))
    assert mask is not None
    seen = [[line.nonzero().flatten().tolist() for line in sheet] for sheet in mask]
    assert seen[0] == [[0], [0, 1], [0, 1, 2], [0, 3], [4]]
    assert seen[1] == [[], [1], [1, 2], [1, 2, 3], [1, 2, 4]]


def test_weights_that_are_there_are_scaled() -> None:
    given = batch(packed=True)
    given = replace(given, weights=torch.full(given.tokens.shape, 4.0))
    row, groups = branch_out(given, VARIANTS, trunk=None, weight=0.5)
    assert row.weights is not None
    assert row.weights[0].tolist() == [2.0 if group else 4.0 for group in groups.tolist()]
