"""Prepacked inference linears give what the layer gave."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retinue.ops import backend
from retinue.ops.linear import PackedLinear, prepack_bf16


@pytest.mark.parametrize("bias", [True, False])
def test_prepacked_is_the_layer(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).bfloat16()
    exact = nn.Linear(48, 80, bias=bias)
    exact.load_state_dict({k: v.float() for k, v in linear.state_dict().items()})
    with torch.no_grad():
        packed = prepack_bf16(linear)
        for shape in ((48,), (1, 48), (3, 7, 48), (200, 48)):
            x = torch.randn(shape).bfloat16()
            truth, plain, fast = exact(x.float()), linear(x), packed(x)
            assert fast.shape == plain.shape
            assert fast.dtype == torch.bfloat16
            allowed = 2 * (plain.float() - truth).abs().max() + 1e-6
            assert (fast.float() - truth).abs().max() <= allowed


def test_packs_only_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    half = nn.Linear(16, 16).bfloat16()
    if backend.cpu_prepack():
        assert isinstance(prepack_bf16(half), PackedLinear)
    full = nn.Linear(16, 16)
    assert prepack_bf16(full) is full
    with backend.override("plain"):
        assert prepack_bf16(half) is half
    monkeypatch.setattr(backend, "cpu_prepack", lambda: False)
    assert prepack_bf16(half) is half
