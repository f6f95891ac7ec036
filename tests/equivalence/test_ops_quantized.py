"""Products on 8-bit and 4-bit codes: the fast form gives what the plain form gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from retinue.ops import backend, quantized, quantized_kernels
from retinue.ops.quantized import (
    decode_int4,
    decode_int8,
    encode_int4,
    encode_int8,
    int4_linear,
    int8_linear,
    pack_int4,
)

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(64, 96), (48, 40), (7, 65)]  # outputs, inputs: whole groups; padded; none


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with backend.override("fast"):
        yield


def rms(x: torch.Tensor) -> float:
    return float(x.float().square().mean().sqrt())


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_stand_for_the_weight(shape: tuple[int, int]) -> None:
    """Half a step of the grid, and what rounding scales to bf16 adds, is all that gets lost."""
    w_OI = torch.randn(shape)
    eight = decode_int8(*encode_int8(w_OI), dtype=torch.float32)
    step_O = w_OI.abs().amax(1) / 127
    assert ((eight - w_OI).abs() <= 0.75 * step_O[:, None]).all()
    four = encode_int4(w_OI)
    assert decode_int4(four, dtype=torch.float32).shape == shape
    error = (decode_int4(four, dtype=torch.float32) - w_OI).abs()
    assert error.max() <= 0.7 * float(four.scale_GO.max())
    assert rms(decode_int4(four, dtype=torch.float32) - w_OI) < 0.12


def test_a_weight_of_one_value_and_of_zeros() -> None:
    for value in (0.0, 0.25):
        w_OI = torch.full((16, 32), value)
        assert torch.allclose(decode_int4(encode_int4(w_OI), dtype=torch.float32), w_OI, atol=1e-6)
        eight = decode_int8(*encode_int8(w_OI), dtype=torch.float32)
        assert torch.allclose(eight, w_OI, rtol=4e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_fast_is_plain(dtype: torch.dtype, shape: tuple[int, int], rows: int) -> None:
    """The kernels round in bf16 in between: 1 % of the outputs' size, also for float32 inputs."""
    torch.manual_seed(rows)
    w_OI, x = torch.randn(shape) * 0.1, torch.randn(2, rows, shape[1]).to(dtype)[0]
    four, (codes, scale) = encode_int4(w_OI), encode_int8(w_OI)
    plain = int4_linear(x, four, form="plain")
    fast = int4_linear(x, four, packed=lambda: pack_int4(four), form="fast")
    assert fast.dtype == plain.dtype == dtype
    assert fast.shape == (rows, shape[0])
    assert (fast.float() - plain.float()).abs().max() <= 0.03 * rms(plain)
    plain, fast = (int8_linear(x, codes, scale, form=form) for form in ("plain", "fast"))
    assert (fast.float() - plain.float()).abs().max() <= 0.03 * rms(plain)
    truth = x.float() @ decode_int4(four, dtype=torch.float32).T
    assert rms(int4_linear(x, four).float() - truth) <= 0.01 * rms(truth)


def test_kernels_are_used_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows go to the kernel, many rows and wanted gradients to the decoded weight."""
    four, asked = encode_int4(torch.randn(64, 64)), []

    def packed() -> quantized_kernels.Packed | None:
        asked.append(1)
        return pack_int4(four)

    few, many = torch.randn(1, 64), torch.randn(quantized.FEW["int4"] + 1, 64)
    int4_linear(many, four, packed=packed)
    int4_linear(few.clone().requires_grad_(), four, packed=packed).sum().backward()
    int4_linear(few, four, packed=packed, form="plain")
    assert not asked
    int4_linear(few, four, packed=packed)
    assert asked
    monkeypatch.setattr(quantized, "int4_kernel", lambda device: None)
    assert pack_int4(four) is None
    monkeypatch.setattr(quantized, "int8_kernel", lambda device: None)
    assert int8_linear(few, *encode_int8(torch.randn(5, 64))).shape == (1, 5)


def test_this_torch_has_the_kernels_it_was_written_for() -> None:
    """A torch that drops a private kernel must not go unnoticed: it would only be slow."""
    if torch.__version__.startswith("2.13"):
        assert quantized_kernels.int4_kernel("cpu") is not None
        assert quantized_kernels.int8_kernel("cpu") is not None
    assert quantized_kernels.int4_kernel("nowhere") is None
