"""What plans say about who sees whom."""

from __future__ import annotations

import pytest
import torch

from retinue.ops.plan import (
    AttentionPlan,
    distances,
    plan_cached,
    plan_causal,
    plan_documents,
    plan_full,
    plan_tree,
)

CPU = torch.device("cpu")


def seen(plan: AttentionPlan, T: int, S: int) -> list[list[list[int]]]:
    mask = plan.dense(T, S, CPU)
    assert mask is not None
    return [[row.nonzero().flatten().tolist() for row in sheet] for sheet in mask]


def test_documents_see_themselves_and_padding_nothing() -> None:
    plan = plan_documents(torch.tensor([[1, 1, 2, 0], [0, 1, 1, 1]]))
    assert seen(plan, 4, 4) == [[[0], [0, 1], [2], []], [[], [1], [1, 2], [1, 2, 3]]]
    assert plan.longest == 3
    assert plan.cu_seqlens is not None
    assert plan.real_N is not None
    assert plan.cu_seqlens.tolist() == [0, 2, 3, 6]
    assert plan.real_N.tolist() == [0, 1, 2, 5, 6, 7]


def test_boundaries_say_what_segments_say() -> None:
    segments = torch.tensor([[1, 1, 2, 3, 3]])
    cu_seqlens = torch.tensor([0, 2, 3, 5], dtype=torch.int32)
    one, other = plan_documents(segments), plan_documents(segments, cu_seqlens=cu_seqlens)
    assert seen(one, 5, 5) == seen(other, 5, 5)
    assert one.real_N is None
    assert other.real_N is None
    assert other.cu_seqlens is not None
    assert other.cu_seqlens.tolist() == cu_seqlens.tolist()


def test_rows_of_one_document_need_no_table() -> None:
    plan = plan_documents(torch.ones(2, 3, dtype=torch.long))
    assert (plan.kind, plan.table) == ("causal", None)
    assert seen(plan, 3, 3) == [[[0], [0, 1], [0, 1, 2]]]


def test_late_queries_see_earlier_keys() -> None:
    assert seen(plan_causal(), 2, 4) == [[[0, 1, 2], [0, 1, 2, 3]]]


def test_branches_see_the_prefix_and_themselves() -> None:
    plan = plan_tree([(0, 2, [2, 1])], T=6, device=CPU)
    assert seen(plan, 6, 6) == [[[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], []]]
    with pytest.raises(AssertionError, match="ends at 5"):
        plan_tree([(0, 2, [2, 1])], T=4, device=CPU)


def test_cached_tokens_of_other_documents_stay_hidden() -> None:
    past, new = torch.tensor([[0, 1, 1], [1, 1, 2]]), torch.tensor([[1, 1], [2, 0]])
    plan = plan_cached(past, new)
    assert plan.blank
    assert seen(plan, 2, 5) == [[[1, 2, 3], [1, 2, 3, 4]], [[2, 3], []]]
    alone = plan_cached(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))
    assert alone.kind == "causal"
    assert not plan_cached(past, torch.tensor([[1], [2]])).blank


def test_full_hides_keys() -> None:
    assert plan_full().dense(2, 3, CPU) is None
    assert seen(plan_full(keys_BS=torch.tensor([[1, 0, 1]])), 1, 3) == [[[0, 2]]]


def test_distances_count_visible_keys_only() -> None:
    mask = torch.tensor([[[True, False, True, True, False]]])
    assert distances(mask)[mask].tolist() == [2, 1, 0]
