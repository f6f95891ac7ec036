"""The compiled gradient of attention against autograd in fp32, and life without a compiler."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from retinue.ops import native
from retinue.ops.attention_blocks import block_backward, long_backward
from retinue.ops.native.attention import compiled_backward, equal_pieces, serves

Case = tuple[int, int, int, int, int, int, bool]
CASES: list[Case] = [
    # pieces, heads, groups, queries, keys, width, causal
    (1, 2, 2, 64, 64, 64, True),
    (2, 2, 2, 65, 65, 32, True),
    (1, 4, 2, 300, 300, 64, True),
    (1, 2, 1, 129, 129, 96, True),
    (1, 2, 2, 70, 200, 64, False),
    (2, 2, 2, 200, 63, 32, False),
]


def tensors(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """(inputs of the gradient in bfloat16, gradients of q, k, v by autograd in fp32)."""
    n, heads, groups, queries, keys, width, causal = case
    generator = torch.Generator().manual_seed(sum(case))
    q, g = (torch.randn(n, queries, heads, width, generator=generator) for _ in range(2))
    k, v = (torch.randn(n, keys, groups, width, generator=generator) for _ in range(2))
    # laid out as the model has them: heads inside tokens
    small = [x.bfloat16().transpose(1, 2) for x in (g, q, k, v)]
    leaves = [x.float().requires_grad_() for x in small[1:]]
    spread = [leaves[0], *(x.repeat_interleave(heads // groups, 1) for x in leaves[1:])]
    out = scaled_dot_product_attention(*spread, is_causal=causal)
    out.backward(small[0].float())
    scores = spread[0] @ spread[1].transpose(-1, -2) * width**-0.5
    if causal:
        scores = scores.masked_fill(torch.ones(queries, keys).triu(1) > 0, -torch.inf)
    inputs = [*small, out.detach().bfloat16(), scores.detach().logsumexp(-1)]
    return inputs, [x.grad for x in leaves if x.grad is not None]


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_autograds(case: Case) -> None:
    """A bfloat16 rounding is 4e-3; what torch's own kernel is off by is of the same size."""
    heads, groups, width, causal = case[1], case[2], case[5], case[6]
    inputs, wanted = tensors(case)
    g, q, k, v, out, lse = inputs
    spread = [x.repeat_interleave(heads // groups, 1) for x in (k, v)]
    options = {"scale": width**-0.5, "causal": causal}
    for name, found in {
        "blocks": block_backward(g, q, *spread, out, lse, **options),
        "chosen": long_backward(g, q, *spread, out, lse, **options),
    }.items():
        summed = [found[0], *(x.unflatten(1, (groups, -1)).sum(2) for x in found[1:])]
        assert max(map(off, summed, wanted)) < 1e-2, name
    if compiled_backward() is not None:
        own = equal_pieces(*inputs, **options)
        assert [x.shape for x in own] == [x.shape for x in wanted]
        assert max(map(off, own, wanted)) < 7e-3


def test_threads_do_not_change_a_bit() -> None:
    inputs, _ = tensors(CASES[2])
    before, found = torch.get_num_threads(), []
    spread = [x.repeat_interleave(2, 1) for x in inputs[2:4]]
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(long_backward(*inputs[:2], *spread, *inputs[4:], scale=0.125))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_where_a_compiler_is_there_is_a_kernel() -> None:
    """On processors with products in bfloat16; elsewhere the other form serves."""
    flags = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    expected = bool(shutil.which("c++") or shutil.which("g++")) and "amx_bf16" in flags
    assert compiled_backward() is not None or not expected
    assert not serves(torch.zeros(1, 1, 4, 40, dtype=torch.bfloat16))
    assert not serves(torch.zeros(1, 1, 4, 64))


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_without_a_compiler(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    assert native.library("attention_backward") is None
    assert list((tmp_path / "native").iterdir()) == []
    monkeypatch.setenv("RETINUE_NATIVE", "0")
    monkeypatch.delenv("CXX")
    assert native.library("attention_backward") is None
