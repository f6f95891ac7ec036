"""The fast forms of attention give what the plain form gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retinue.ops import attention_cpu, backend
from retinue.ops.attention import (
    AttentionPlan,
    attend,
    plan_cached,
    plan_causal,
    plan_documents,
    plan_full,
    plan_tree,
)
from retinue.ops.attention_blocks import QUERIES

CPU = torch.device("cpu")
D = 16


def segments(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def packed(*lengths: int) -> AttentionPlan:
    cu = torch.tensor([0, *lengths]).cumsum(0)
    return plan_documents(torch.ones(1, int(cu[-1]), dtype=torch.long), cu_seqlens=cu)


KEYS_SEEN = torch.ones(2, 9, dtype=torch.bool)
KEYS_SEEN[0, 4:] = False
KEYS_SEEN[1] = False
PADDED_LEFT = segments([0, 0, 1, 1, 1, 1, 2, 2], [1] * 8)

# name -> (plan, rows, queries, keys)
PLANS = {
    "full": (plan_full(), 3, 7, 7),
    "full, more keys": (plan_full(), 2, 4, 11),
    "full, hidden keys, one row without any": (plan_full(keys_BS=KEYS_SEEN), 2, 5, 9),
    "causal": (plan_causal(), 3, 9, 9),
    "causal, late queries": (plan_causal(), 2, 3, 9),
    "causal, one query": (plan_causal(), 2, 1, 9),
    "padded right": (plan_documents(segments([1] * 7 + [0], [1] * 5 + [0] * 3)), 2, 8, 8),
    "padded left": (plan_documents(PADDED_LEFT), 2, 8, 8),
    "a row of padding": (plan_documents(segments([1, 1, 2, 0], [0, 0, 0, 0])), 2, 4, 4),
    "packed": (packed(5, 9, 8, 9, 1, 30, 9, 8), 1, 79, 79),
    "packed, padding between": (plan_documents(segments([1, 1, 0, 2, 2, 2, 0])), 1, 7, 7),
    "packed, long": (packed(70, 5, 400), 1, 475, 475),
    "tree": (plan_tree([(0, 6, [3, 1, 5]), (15, 0, [4, 2])], T=23, device=CPU), 1, 23, 23),
    "cached, one query": (plan_cached(PADDED_LEFT, segments([2], [1])), 2, 1, 9),
    "cached, chunk": (plan_cached(PADDED_LEFT, segments([2, 2, 2], [1, 1, 1])), 2, 3, 11),
    "cached, padded queries": (plan_cached(PADDED_LEFT, segments([2, 2], [1, 0])), 2, 2, 10),
    "no cache": (plan_cached(None, PADDED_LEFT), 2, 8, 8),
}


def inputs(
    B: int, T: int, S: int, *, heads: int, groups: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    torch.manual_seed(B + T + S)
    shapes = [(B, T, heads, D), (B, S, groups, D), (B, S, groups, D)]
    # as models hand them over: token-major memory, head-major view
    return [torch.randn(s).to(dtype).transpose(1, 2).detach().requires_grad_() for s in shapes]


def run(qkv: list[Tensor], grad: Tensor, plan: AttentionPlan, form: backend.Form) -> list[Tensor]:
    out = attend(*qkv, plan=plan, backend=form)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad.to(out.dtype))]


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_fast_is_plain(name: str, alibi: bool, groups: int) -> None:
    plan, B, T, S = PLANS[name]
    if alibi:
        plan = plan.with_alibi(torch.tensor([0.5, 0.25, 0.125, 0.0625]))
    qkv = inputs(B, T, S, heads=4, groups=groups)
    grad = torch.randn(B, T, 4, D)
    for fast, plain in zip(
        run(qkv, grad, plan, "fast"), run(qkv, grad, plan, "plain"), strict=True
    ):
        assert fast.isfinite().all()
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("name", ["full", "causal", "padded right", "packed", "tree"])
def test_short_pieces_by_products(
    name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In reduced precision, and on a torch without its CPU kernels: at most twice plain's error."""
    monkeypatch.setattr(backend, "cpu_flash", lambda: kernels)
    plan, B, T, S = PLANS[name]
    qkv = inputs(B, T, S, heads=4, groups=2, dtype=torch.bfloat16)
    grad = torch.randn(B, T, 4, D).bfloat16()
    exact = run([x.detach().float().requires_grad_() for x in qkv], grad, plan, "plain")
    results = zip(exact, run(qkv, grad, plan, "plain"), run(qkv, grad, plan, "fast"), strict=True)
    for truth, plain, fast in results:
        allowed = 2 * (plain.float() - truth).abs().max() + 1e-6
        assert (fast.float() - truth).abs().max() <= allowed


@pytest.mark.parametrize("groups", [2, 4])
def test_long_pieces_by_blocks(groups: int) -> None:
    """Pieces of several blocks of queries in bfloat16: at most twice plain's error."""
    lengths = [2 * QUERIES + 37, QUERIES + 1]
    plan, T = packed(*lengths), sum(lengths)
    qkv = inputs(1, T, T, heads=4, groups=groups, dtype=torch.bfloat16)
    grad = torch.randn(1, T, 4, D).bfloat16()
    exact = run([x.detach().float().requires_grad_() for x in qkv], grad, plan, "plain")
    results = zip(exact, run(qkv, grad, plan, "plain"), run(qkv, grad, plan, "fast"), strict=True)
    for truth, plain, fast in results:
        allowed = 2 * (plain.float() - truth).norm() + 1e-6
        assert (fast.float() - truth).norm() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("groups", [2, 4])
def test_long_trees_in_two_parts(groups: int, dtype: torch.dtype) -> None:
    """Trunks and branches of several blocks, a document between: at most twice plain's error."""
    document = QUERIES // 2
    trees = [
        (0, 40, [QUERIES + 37, 5, 1]),
        (QUERIES + 83, 0, [document]),
        (QUERIES + 83 + document, 2 * QUERIES + 9, [70, 300]),
    ]
    T = QUERIES + 83 + document + 2 * QUERIES + 9 + 370
    plan = plan_tree(trees, T=T + 3, device=torch.device("cpu"))
    qkv = inputs(1, T + 3, T + 3, heads=4, groups=groups, dtype=dtype)
    grad = torch.randn(1, T + 3, 4, D).to(dtype)
    exact = run([x.detach().double().requires_grad_() for x in qkv], grad, plan, "plain")
    results = zip(exact, run(qkv, grad, plan, "plain"), run(qkv, grad, plan, "fast"), strict=True)
    for truth, plain, fast in results:
        allowed = 2 * (plain.double() - truth).norm() + 1e-6
        assert (fast.double() - truth).norm() <= allowed


def test_without_kernels_is_plain_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cpu_flash", lambda: False)
    for name in ("packed", "tree", "padded left", "full, more keys"):
        plan, B, T, S = PLANS[name]
        qkv, grad = inputs(B, T, S, heads=4, groups=2), torch.randn(B, T, 4, D)
        results = zip(run(qkv, grad, plan, "fast"), run(qkv, grad, plan, "plain"), strict=True)
        for fast, plain in results:
            torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["full", "causal", "packed", "tree", "cached, padded queries"])
def test_values_may_be_narrower(name: str) -> None:
    plan, B, T, S = PLANS[name]
    q, k, v = inputs(B, T, S, heads=4, groups=2)
    qkv = [q, k, v[..., :6].detach().requires_grad_()]
    grad = torch.randn(B, T, 4, 6)
    for fast, plain in zip(
        run(qkv, grad, plan, "fast"), run(qkv, grad, plan, "plain"), strict=True
    ):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_packed_documents_are_separate_forwards() -> None:
    lengths = [5, 9, 8, 40]
    qkv = inputs(1, sum(lengths), sum(lengths), heads=4, groups=2)
    out = attend(*qkv, plan=packed(*lengths))
    at = 0
    for n in lengths:
        alone = attend(*(x[:, :, at : at + n] for x in qkv), plan=plan_causal(), backend="plain")
        torch.testing.assert_close(out[:, at : at + n], alone, atol=2e-6, rtol=0)
        at += n


def test_a_branch_is_a_forward_of_prefix_and_branch() -> None:
    plan = plan_tree([(0, 4, [3, 2])], T=9, device=CPU)
    qkv = inputs(1, 9, 9, heads=4, groups=4)
    out = attend(*qkv, plan=plan)
    for first, length in ((4, 3), (7, 2)):
        index = torch.tensor([*range(4), *range(first, first + length)])
        alone = attend(*(x[:, :, index] for x in qkv), plan=plan_causal(), backend="plain")
        torch.testing.assert_close(out[:, first : first + length], alone[:, 4:], atol=2e-6, rtol=0)


def test_gradients_stop_at_padding() -> None:
    plan = PLANS["padded left"][0]
    qkv = inputs(2, 8, 8, heads=4, groups=4)
    _, *grads = run(qkv, torch.ones(2, 8, 4, D), plan, "fast")
    assert all(not grad[0, :, :2].any() for grad in grads)


def test_windows_and_softcap_hide_and_flatten() -> None:
    qkv = inputs(1, 12, 12, heads=4, groups=2)
    plan = packed(7, 5)
    q, k, v = qkv
    at = torch.arange(12)
    mask = plan.dense(12, 12, CPU)
    assert mask is not None
    mask = mask & (at[:, None] - at < 3)
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = 5 * ((q @ k.transpose(-1, -2)) * D**-0.5 / 5).tanh()
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    out = attend(*qkv, plan=plan, window=3, softcap=5.0)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
    wide, narrow = attend(*qkv, plan=plan, window=7), attend(*qkv, plan=plan, window=3)
    torch.testing.assert_close(wide, attend(*qkv, plan=plan), atol=0, rtol=0)
    assert not torch.allclose(wide, narrow)


def test_dropout_drops() -> None:
    qkv = inputs(1, 30, 30, heads=4, groups=4)
    torch.manual_seed(0)
    dropped = attend(*qkv, plan=plan_causal(), dropout=0.5)
    assert not torch.allclose(dropped, attend(*qkv, plan=plan_causal()))


def test_queries_take_the_dtype_of_values() -> None:
    q, k, v = inputs(1, 6, 6, heads=4, groups=4)
    out = attend(q, k, v.bfloat16(), plan=plan_causal())
    assert out.dtype == torch.bfloat16


@pytest.mark.slow
def test_the_operation_compiles_once_for_all_packings() -> None:
    def layer(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
        return attend(q * 2, k, v, plan=plan) + 1

    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    for lengths in ([5, 9], [3, 4, 6, 2], [11, 2, 6]):
        qkv = inputs(1, sum(lengths), sum(lengths), heads=4, groups=2)
        plan = packed(*lengths)
        expected, out = layer(*qkv, plan), compiled(*qkv, plan)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
        grads = torch.autograd.grad(out.sum(), qkv), torch.autograd.grad(expected.sum(), qkv)
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        qkv, plan = inputs(1, 20, 20, heads=4, groups=2), packed(13, 7)
        torch.testing.assert_close(compiled(*qkv, plan), layer(*qkv, plan), atol=1e-6, rtol=1e-5)


def test_operation_is_well_formed() -> None:
    q, k, v = inputs(1, 14, 14, heads=4, groups=2)
    table = packed(5, 9).table
    arguments = (q, k, v, table, None, True, 0.25)
    torch.library.opcheck(attention_cpu.piece_attention, arguments)
