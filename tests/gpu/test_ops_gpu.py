"""The operations on an accelerator, in bf16: at most twice the error of the plain form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retinue.ops import backend
from retinue.ops.attention import (
    AttentionPlan,
    attend,
    plan_cached,
    plan_causal,
    plan_documents,
    plan_full,
    plan_tree,
)
from retinue.ops.cross_entropy import linear_cross_entropy_sum
from retinue.ops.spans import scatter_tokens

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    return backend.pick_device("cuda")[0]


def within_twice(truth: list[Tensor], plain: list[Tensor], fast: list[Tensor]) -> None:
    for exact, reference, result in zip(truth, plain, fast, strict=True):
        assert result.isfinite().all()
        allowed = 2 * (reference.float() - exact).abs().max() + 1e-5
        assert (result.float() - exact).abs().max() <= allowed


def plans(device: torch.device) -> dict[str, tuple[AttentionPlan, int, int, int]]:
    padded = torch.zeros(2, 160, dtype=torch.long, device=device)
    padded[0, :100], padded[0, 100:130], padded[1, 20:] = 1, 2, 1
    cu = torch.tensor([0, 5, 135, 200, 320], dtype=torch.int32, device=device)
    row = torch.ones(1, 320, dtype=torch.long, device=device)
    new = torch.tensor([[0], [1]], device=device)
    return {
        "full": (plan_full(), 2, 65, 65),
        "causal": (plan_causal(), 2, 130, 130),
        "causal, late queries": (plan_causal(), 2, 7, 130),
        "padded": (plan_documents(padded), 2, 160, 160),
        "packed": (plan_documents(row, cu_seqlens=cu), 1, 320, 320),
        "tree": (plan_tree([(0, 40, [30, 20])], T=90, device=device), 1, 90, 90),
        "cached": (plan_cached(padded, new), 2, 1, 161),
    }


NAMES = ["full", "causal", "causal, late queries", "padded", "packed", "tree", "cached"]


@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("name", NAMES)
def test_attention(device: torch.device, name: str, groups: int) -> None:
    plan, B, T, S = plans(device)[name]
    torch.manual_seed(0)
    shapes = [(B, 8, T, 64), (B, groups, S, 64), (B, groups, S, 64)]
    qkv = [torch.randn(s, device=device).bfloat16().requires_grad_() for s in shapes]
    grad = torch.randn(B, T, 8, 64, device=device).bfloat16()

    def run(inputs: list[Tensor], form: backend.Form) -> list[Tensor]:
        out = attend(*inputs, plan=plan, backend=form)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]

    exact = [x.detach().float().requires_grad_() for x in qkv]
    within_twice(run(exact, "plain"), run(qkv, "plain"), run(qkv, "fast"))


@pytest.mark.parametrize("chunk", [100, 1000])
def test_cross_entropy(device: torch.device, chunk: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64, device=device), torch.randn(1000, 64, device=device)
    targets = torch.randint(1000, (300,), device=device)

    def run(dtype: torch.dtype, form: backend.Form) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        loss, _ = linear_cross_entropy_sum(*leaves, targets, chunk=chunk, backend=form)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    rounded = [x.bfloat16().float().requires_grad_() for x in (hidden, weight)]
    loss, _ = linear_cross_entropy_sum(*rounded, targets, backend="plain")
    truth = [loss.detach(), *torch.autograd.grad(loss, rounded)]
    within_twice(truth, run(torch.bfloat16, "plain"), run(torch.bfloat16, "fast"))


def test_scatter_and_device_statistics(device: torch.device) -> None:
    x = torch.zeros(2, 3, 4, device=device)
    out = scatter_tokens(x, torch.ones(2, 4, device=device), torch.tensor([1, 5], device=device))
    assert out.sum() == 8
    backend.synchronize(device)
    assert backend.memory_stats(device)["peak"] >= backend.memory_stats(device)["allocated"] > 0
