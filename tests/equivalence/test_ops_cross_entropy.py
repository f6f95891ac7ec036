"""The chunked cross-entropy gives the plain one's sum, count and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retinue.ops import backend
from retinue.ops.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum
from retinue.types import IGNORE

S, D, V = 37, 12, 50


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(S, D), torch.randn(V, D), torch.randn(V)
    targets = torch.randint(V, (S,))
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    return leaves[0], leaves[1], leaves[2], targets


@pytest.mark.parametrize("chunk", [1, 10, 37, 1000])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_fast_is_plain(chunk: int, softcap: float | None, weighted: bool, biased: bool) -> None:
    hidden, weight, bias, targets = inputs()
    targets[3] = IGNORE
    weights = torch.rand(S) if weighted else None
    results = []
    for form in backend.FORMS:
        loss, num = linear_cross_entropy_sum(
            hidden,
            weight,
            targets,
            bias=bias if biased else None,
            weights_S=weights,
            chunk=chunk,
            softcap=softcap,
            backend=form,
        )
        leaves = [hidden, weight, bias] if biased else [hidden, weight]
        results.append([loss.detach() / num, num, *torch.autograd.grad(loss * 0.3, leaves)])
    for plain, fast in zip(*results, strict=True):
        assert plain.dtype == fast.dtype
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_sum_is_the_sum_over_counted_rows() -> None:
    hidden, weight, _, targets = inputs()
    targets[5:9] = IGNORE
    mean = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE)
    for form in backend.FORMS:
        loss, num = linear_cross_entropy_sum(hidden, weight, targets, backend=form)
        assert num == S - 4
        torch.testing.assert_close(loss / num, mean)
    loss, num = cross_entropy_sum(hidden @ weight.T, targets)
    torch.testing.assert_close(loss / num, mean)


@pytest.mark.parametrize("form", backend.FORMS)
def test_no_rows_cost_nothing(form: backend.Form) -> None:
    hidden, weight, _, targets = inputs()
    loss, num = linear_cross_entropy_sum(hidden[:0], weight, targets[:0], backend=form)
    assert loss == 0
    assert num == 0
    gradient = torch.autograd.grad(loss, weight)[0]
    assert gradient.shape == weight.shape
    assert not gradient.any()


def test_only_needed_gradients() -> None:
    hidden, weight, _, targets = inputs()
    loss, _ = linear_cross_entropy_sum(hidden, weight.detach(), targets, chunk=10, backend="fast")
    expected, _ = linear_cross_entropy_sum(hidden, weight, targets, backend="plain")
    mine, theirs = (torch.autograd.grad(x, hidden)[0] for x in (loss, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        bare, _ = linear_cross_entropy_sum(hidden, weight, targets, backend="fast")
    torch.testing.assert_close(bare, loss.detach())


def test_reduced_precision_loses_at_most_twice_what_plain_loses() -> None:
    hidden, weight, _, targets = inputs(torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]

    def run(h: Tensor, w: Tensor, form: backend.Form) -> list[Tensor]:
        loss, _ = linear_cross_entropy_sum(h, w, targets, chunk=10, backend=form)
        assert loss.dtype == torch.float32
        return [loss.detach(), *torch.autograd.grad(loss, (h, w))]

    results = (run(*exact, "plain"), run(hidden, weight, "plain"), run(hidden, weight, "fast"))
    for truth, plain, fast in zip(*results, strict=True):
        allowed = 2 * (plain.float() - truth).abs().max() + 1e-6
        assert (fast.float() - truth).abs().max() <= allowed


def test_autocast_casts_both_and_keeps_master_gradients() -> None:
    hidden, weight, _, targets = inputs()
    losses = []
    for form in backend.FORMS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = linear_cross_entropy_sum(hidden, weight, targets, backend=form)
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert [g.dtype for g in grads] == [torch.float32, torch.float32]
        assert loss.dtype == torch.float32
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)
