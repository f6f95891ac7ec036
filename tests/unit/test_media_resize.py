"""Rounding rules, crops and canvases; both kinds of picture agree."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from retinue.core.errors import MediaError
from retinue.media.buffer import shared_array
from retinue.media.resize import (
    best_resolution,
    canvas_size,
    centre_crop,
    check_canvas,
    crop,
    fit_size,
    in_mode,
    letterbox,
    pixels,
    resize,
    shortest_edge_size,
    size_of,
    to_pil,
    to_tensor,
)
from retinue.ops.pixels import normalize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Extreme grey levels: what overshoots is clipped, so the order of passes shows."""
    rng = np.random.default_rng(seed)
    return Image.fromarray((rng.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8))


def test_sizes() -> None:
    assert shortest_edge_size((480, 640), 336) == (336, 448)
    assert shortest_edge_size((640, 427), 336) == (503, 336)
    assert fit_size((20, 97), (28, 84)) == (18, 84)
    assert fit_size((97, 20), (84, 28)) == (84, 18)
    assert canvas_size((3, 5), (7, 7)) == (5, 5)
    assert canvas_size((3, 5), (1, 2)) == (3, 6)
    assert canvas_size((5, 3), (2, 1)) == (6, 3)
    assert best_resolution((10, 10), [(4, 8), (8, 4), (8, 8)]) == (8, 8)
    assert best_resolution((1, 1), [(4, 8), (8, 4)]) == (4, 8)


def test_kinds_round_trip() -> None:
    image = noise(7, 4)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 4, 7)
    assert size_of(tensor) == size_of(image) == (4, 7)
    assert to_pil(tensor).tobytes() == image.tobytes()
    assert in_mode(image, "exact") is image
    assert torch.equal(in_mode(image, "fast"), pixels(image))
    assert in_mode(tensor, "exact").tobytes() == image.tobytes()


def test_memory_shared_with_pillow_outlives_the_image() -> None:
    image = noise(50, 30)
    wanted, tensor = np.array(image), to_tensor(image)
    own = pixels(image)
    del image
    gc.collect()
    fill = [Image.new("RGB", (50, 30), (9, 9, 9)) for _ in range(4)]
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), wanted)
    assert own.is_contiguous()
    assert len(fill) == 4
    assert shared_array(Image.new("L", (3, 3))) is None


def test_large_images_are_copied() -> None:
    image = Image.new("RGB", (2300, 2000), (1, 2, 3))  # beyond one block of Pillow's memory
    assert shared_array(image) is None
    assert to_tensor(image)[:, -1, -1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((97, 33), (28, 84)),
        ((33, 97), (84, 28)),
        ((97, 33), (84, 28)),
        ((60, 61), (28, 28)),
        ((9, 7), (31, 30)),
        ((120, 40), (20, 30)),
        ((40, 40), (40, 40)),
    ],
)
def test_fast_is_within_one_level(
    size: tuple[int, int], target: tuple[int, int], interpolation: str
) -> None:
    image = noise(size[1], size[0])
    exact = pixels(resize(image, target, interpolation=interpolation))
    for tensor in (to_tensor(image), pixels(image)):
        fast = resize(tensor, target, interpolation=interpolation)
        assert fast.shape == (3, *target)
        assert (exact.int() - fast.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(3, 3), (5, 8), (9, 2), (12, 12)])
def test_crops_and_canvases_agree(size: tuple[int, int]) -> None:
    image = noise(8, 5)
    tensor = to_tensor(image)
    for done in (
        lambda p: centre_crop(p, size),
        lambda p: crop(p, top=-1, left=2, size=size),
        lambda p: crop(p, top=3, left=-2, size=size),
        lambda p: letterbox(p, (max(5, size[0]), max(8, size[1])), colour=(1, 2, 3)),
    ):
        assert torch.equal(pixels(done(image)), pixels(done(tensor)))


def test_letterbox_rounds_the_corner_down() -> None:
    canvas = pixels(letterbox(Image.new("RGB", (2, 1), (9, 9, 9)), (4, 5), colour=(1, 2, 3)))
    assert canvas[:, 0, 0].tolist() == [1, 2, 3]
    assert (canvas[0] == 9).nonzero().tolist() == [[1, 1], [1, 2]]


def test_canvas_limit() -> None:
    with pytest.raises(MediaError, match=r"view policy 'pad'.*100000 x 100000.*squash"):
        check_canvas((100_000, 100_000), what="view policy 'pad'")


def test_normalize_has_the_bits_of_the_reference() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (np.array(v, dtype=np.float32) for v in (MEAN, STD))
    for rescale in (1 / 255, 1 / 127.5, 0.1):
        scaled = (levels.numpy().astype(np.float64) * rescale).astype(np.float32)
        wanted = ((scaled.transpose(0, 2, 3, 1) - mean) / std).transpose(0, 3, 1, 2)
        found = normalize(levels, mean=MEAN, std=STD, dtype=torch.float32, rescale=rescale)
        assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalize_in_halves_agrees(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    exact = normalize(levels, mean=MEAN, std=STD, dtype=torch.float32)
    fast = normalize(levels, mean=MEAN, std=STD, dtype=dtype)
    assert fast.dtype == dtype
    off = (fast.float() - exact).abs()
    # one unit in the last place of the half type, and of float32 where the sum cancels
    assert (off <= torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


def test_final_pixels_are_only_cast() -> None:
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(normalize(x, mean=MEAN, std=STD, dtype=torch.float32), x)
    assert normalize(x, mean=MEAN, std=STD, dtype=torch.bfloat16).dtype == torch.bfloat16
