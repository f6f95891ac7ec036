"""The compiled window of a resampled picture against Pillow, and against life without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinue.media.resize import FILTERS, centre_crop, resize, resize_middle, to_tensor
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
def test_windows_are_crops_of_pillows(
    kind: str, size: tuple[int, int], wanted: tuple[int, int], seed: int
) -> None:
    image = picture(*size, seed=seed)
    pixels = four_bytes(image)
    if not serves(pixels, kind):
        assert compiled() is None
        return
    whole = np.asarray(image.resize((wanted[1], wanted[0]), FILTERS[kind])).astype(int)
    rng = np.random.default_rng(seed)
    top, left = (int(rng.integers(0, side)) for side in wanted)
    height, width = wanted[0] - top, wanted[1] - left
    # Two where a level between the passes is another one and is then enlarged (noise, growing), or
    # where Pillow, from 13.0 on, takes the columns first.
    shrinks = wanted[0] <= size[0] and wanted[1] <= size[1]
    limit = 1 if shrinks and size[0] - wanted[0] <= 2 * (size[1] - wanted[1]) else 2
    for place in ((0, 0, *wanted), (top, left, height, width)):
        found = resize_window(pixels, wanted, place=place, interpolation=kind)
        expected = whole[place[0] : place[0] + place[2], place[1] : place[1] + place[3]]
        assert found.shape == (3, place[2], place[3])
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= limit


@pytest.mark.parametrize("size", [(40, 90), (90, 40), (33, 33), (7, 200)])
def test_the_middle_is_the_crop_of_the_whole(size: tuple[int, int]) -> None:
    pixels = four_bytes(picture(*size, seed=1))
    for wanted in ((32, 48), (48, 32), size):
        whole = resize(pixels, wanted)
        for middle in ((24, 24), (60, 60)):
            found = resize_middle(pixels, wanted, middle=middle)
            assert torch.equal(found, centre_crop(whole, middle))


def test_without_a_compiler_torch_answers_within_two_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is one level from Pillow at most."""
    pixels = four_bytes(picture(70, 90, seed=2))
    with_it = resize(pixels, (31, 40)).int()
    compiled.cache_clear()
    monkeypatch.setenv("RETINUE_NATIVE", "0")
    try:
        assert not serves(pixels, "bicubic")
        assert int((resize(pixels, (31, 40)).int() - with_it).abs().max()) <= 2
    finally:
        compiled.cache_clear()


def test_weights_sum_to_one() -> None:
    first, weight, bits = taps(100, 33, "bicubic")
    assert np.abs(weight.sum(1) - 2**bits).max() <= weight.shape[1]
    assert first.min() >= 0
    assert (first + 1 <= 100).all()
