"""For any size: the grid needs no pixels, fast stays near exact, HF's processors are matched."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from retinue.media.anyres import AnyRes
from retinue.media.resize import shortest_edge_size
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.media.whole import Pad, Single, Squash
from retinue.ops.pixels import normalize

SIDE = 14
PINPOINTS = [[14, 28], [28, 14], [28, 28], [42, 14], [14, 42]]
POLICIES: list[ViewPolicy] = [
    Single(),
    Single(axes="guessed"),
    Pad(),
    Squash(),
    AnyRes.parse({"pinpoints": PINPOINTS}),
    AnyRes.parse({"pinpoints": PINPOINTS, "order": "hw"}),
]
sides = st.integers(min_value=1, max_value=130)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(width=sides, height=sides)
def test_grid_agrees_with_views_and_fast_with_exact(width: int, height: int) -> None:
    image = noise(width, height)
    for policy in POLICIES:
        exact, grid = policy.views(image, StreamSpec(size=SIDE))
        assert grid == policy.grid((height, width), StreamSpec(size=SIDE))
        assert exact.shape == (grid.num_views, 3, SIDE, SIDE)
        assert exact.dtype == torch.uint8
        fast, same = policy.views(image, StreamSpec(size=SIDE, mode="fast"))
        assert same == grid
        off = (exact.int() - fast.int()).abs()
        # each of the two passes rounds; on noise both may fall the same way, but seldom
        assert off.max() <= 2, policy
        assert (off > 1).float().mean() <= 0.005, policy


@settings(max_examples=40, deadline=None, derandomize=True)
@given(width=sides, height=sides, rows=st.sampled_from([7, 14]), cols=st.sampled_from([7, 21]))
def test_views_need_not_be_square(width: int, height: int, rows: int, cols: int) -> None:
    stream = StreamSpec(size=(rows, cols))
    for policy in (Single(), Pad(), Squash(), AnyRes(pinpoints=((42, 14), (21, 28)))):
        pixels, grid = policy.views(noise(width, height), stream)
        assert pixels.shape == (grid.num_views, 3, rows, cols)


def ours(policy: ViewPolicy, image: Image.Image) -> torch.Tensor:
    stream = StreamSpec(size=SIDE)
    pixels, _ = policy.views(image, stream)
    return normalize(pixels, mean=stream.mean, std=stream.std, rescale=stream.rescale)


SIZES = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
CLIP = CLIPImageProcessorPil(**SIZES)
LLAVA = LlavaImageProcessorPil(**SIZES, do_pad=True)
NEXT = LlavaNextImageProcessorPil(**SIZES, image_grid_pinpoints=PINPOINTS)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(width=sides, height=sides)
def test_bits_of_transformers(width: int, height: int) -> None:
    image = noise(width, height)
    clip = CLIP(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(Single(), image), clip)
    llava = LLAVA(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(Pad(), image), llava)
    policy = AnyRes.parse({"pinpoints": PINPOINTS, "order": "hw"})
    anyres = NEXT(image, return_tensors="pt")
    assert torch.equal(ours(policy, image), anyres["pixel_values"][0])
    assert anyres["image_sizes"][0].tolist() == [height, width]


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), short=st.integers(1, 700))
def test_shortest_edge_is_the_shortest(width: int, height: int, short: int) -> None:
    resized = shortest_edge_size((height, width), short)
    assert min(resized) == short
    assert (resized[0] >= resized[1]) == (height >= width) or resized[0] == resized[1]
