"""The compiled window of a resampled picture has the bits of torch's resampling of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from retinue.media.resize import centre_crop, resize, resize_middle, to_tensor
from retinue.media.window import compiled, resize_window, serves, taps

sides = st.integers(1, 90)


def picture(height: int, width: int, *, seed: int) -> Image.Image:
    """Noise beside flat colours: rounding and clipping both happen."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    noise[:, : width // 2] = noise[:, : width // 2] // 128 * 255
    return Image.fromarray(noise)


def four_bytes(image: Image.Image) -> torch.Tensor:
    return to_tensor(np.array(image.convert("RGBA")))


@settings(max_examples=150, deadline=None)
@given(size=st.tuples(sides, sides), wanted=st.tuples(sides, sides), seed=st.integers(0, 99))
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_windows_have_the_bits_of_torchs_resampling(
    kind: str, size: tuple[int, int], wanted: tuple[int, int], seed: int
) -> None:
    pixels = four_bytes(picture(*size, seed=seed))
    if not serves(pixels, kind):
        assert compiled() is None
        return
    four = pixels.as_strided((4, *size), (1, 4 * size[1], 4))
    whole = interpolate(four[None], size=wanted, mode=kind, antialias=True)[0, :3]
    rng = np.random.default_rng(seed)
    top, left = (int(rng.integers(0, side)) for side in wanted)
    for place in ((0, 0, *wanted), (top, left, wanted[0] - top, wanted[1] - left)):
        found = resize_window(pixels, wanted, place=place, interpolation=kind)
        rows, columns = (slice(at, at + n) for at, n in zip(place[:2], place[2:], strict=True))
        assert torch.equal(found, whole[:, rows, columns])


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (33, 33), (7, 200)])
def test_the_middle_is_the_crop_of_the_whole(size: tuple[int, int]) -> None:
    pixels = four_bytes(picture(*size, seed=1))
    for wanted in ((32, 48), (48, 32), size):
        whole = resize(pixels, wanted)
        for middle in ((24, 24), (60, 60)):
            found = resize_middle(pixels, wanted, middle=middle)
            assert torch.equal(found, centre_crop(whole, middle))


def test_without_a_compiler_torch_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = four_bytes(picture(70, 90, seed=2))
    with_it = resize(pixels, (31, 40))
    compiled.cache_clear()
    monkeypatch.setenv("RETINUE_NATIVE", "0")
    try:
        assert not serves(pixels, "bicubic")
        assert torch.equal(resize(pixels, (31, 40)), with_it)
    finally:
        compiled.cache_clear()


def test_weights_sum_to_one() -> None:
    first, weight, bits = taps(100, 33, "bicubic")
    assert np.abs(weight.sum(1) - 2**bits).max() <= weight.shape[1]
    assert first.min() >= 0
    assert (first + 1 <= 100).all()
