"""Few-bit weights on an accelerator: the kernels answer as the plain forms, memory stays small."""

from __future__ import annotations

import pytest
import torch

from retinue.model.quant.swap import quantize
from retinue.ops import backend
from retinue.ops.quantized import (
    decode_int4,
    encode_int4,
    encode_int8,
    int4_linear,
    int8_linear,
    pack_int4,
)
from tiny import ask, picture, tiny_model

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    return backend.pick_device("cuda")[0]


@pytest.mark.parametrize("rows", [1, 8, 100])
def test_fast_is_plain(device: torch.device, rows: int) -> None:
    torch.manual_seed(rows)
    w_OI = torch.randn(256, 512, device=device) * 0.1
    x_NI = torch.randn(rows, 512, device=device).bfloat16()
    four, eight = encode_int4(w_OI), encode_int8(w_OI)
    exact = x_NI.float() @ decode_int4(four, dtype=torch.float32).T
    plain = int4_linear(x_NI, four, form="plain")
    fast = int4_linear(x_NI, four, packed=lambda: pack_int4(four), form="fast")
    allowed = 0.02 * exact.square().mean().sqrt()
    assert (plain.float() - exact).square().mean().sqrt() <= allowed
    assert (fast.float() - exact).square().mean().sqrt() <= allowed
    sides = [int8_linear(x_NI, *eight, form=form).float() for form in ("plain", "fast")]
    assert (sides[0] - sides[1]).square().mean().sqrt() <= allowed


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_model_in_few_bits_answers_as_on_the_cpu(device: torch.device, kind: str) -> None:
    model, processor = tiny_model(width=128)
    batch = processor([ask("a", "what colour?", picture())])
    quantize(model, kind=kind)
    with torch.no_grad():
        here = model.run(batch).logits
        there = model.to(device).run(batch.to(device)).logits.cpu()
    assert (here - there).abs().max() < 0.05 * here.std()
