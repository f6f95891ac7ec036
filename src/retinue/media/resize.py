"""Resizing, cropping and placing of pictures, with the rounding rules of the original systems.

A Picture is a PIL image (mode `exact`: Pillow's filters, bit-identical to the originals) or a uint8
tensor (3, H, W) (mode `fast`: torch's antialiased filters, at most one grey level away; two where
enlarged noise passes two roundings). Every function takes either and returns the same kind. Sizes
are (height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import Image
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from torch import Tensor
from torch.nn.functional import interpolate

from retinue.core.errors import MediaError
from retinue.media.buffer import shared_array
from retinue.media.window import resize_window, serves

Mode = Literal["exact", "fast"]
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
Size = tuple[int, int]
Picture = PILImage | Tensor

FILTERS = {
    "bicubic": Resampling.BICUBIC,
    "bilinear": Resampling.BILINEAR,
    "lanczos": Resampling.LANCZOS,
    "nearest": Resampling.NEAREST,
}
COLUMNS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
MAX_CANVAS = 178_956_970
"""Pixels an intermediate picture may have; long thin pictures reach it after padding."""


# ---------------------------------------------------------------- kinds


def to_tensor(image: PILImage | np.ndarray[Any, Any]) -> Tensor:
    """uint8 tensor (3, H, W) of an RGB image or (H, W, 3 or 4) array; channels stay innermost.

    It may share the image's memory: read it, never write into it.
    """
    if not isinstance(image, PILImage):
        return torch.from_numpy(image).permute(2, 0, 1)[:3]
    shared = shared_array(image)
    array = np.array(image) if shared is None else shared
    return torch.from_numpy(array).permute(2, 0, 1)[:3]


def to_pil(pixels_CHW: Tensor) -> PILImage:
    """RGB image of a uint8 tensor (3, H, W)."""
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


def in_mode(picture: Picture, mode: Mode) -> Picture:
    """The picture as the kind that `mode` works on."""
    if mode == "exact":
        return picture if isinstance(picture, PILImage) else to_pil(picture)
    return to_tensor(picture) if isinstance(picture, PILImage) else picture


def pixels(picture: Picture) -> Tensor:
    """Contiguous uint8 tensor (3, H, W) with memory of its own."""
    tensor = to_tensor(picture) if isinstance(picture, PILImage) else picture
    return tensor.clone(memory_format=torch.contiguous_format)


def size_of(picture: Picture) -> Size:
    """(height, width) of either kind."""
    if isinstance(picture, PILImage):
        return picture.height, picture.width
    return int(picture.shape[-2]), int(picture.shape[-1])


# ---------------------------------------------------------------- sizes


def shortest_edge_size(size: Size, short: int) -> Size:
    """Size with the shorter side `short` and the longer one int(short * long / short side)."""
    height, width = size
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def fit_size(size: Size, box: Size) -> Size:
    """Largest size of the same shape inside `box`; the free side is rounded up (LLaVA-NeXT)."""
    height, width = size
    scale_h, scale_w = box[0] / height, box[1] / width
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), box[0]), box[1]
    return box[0], min(math.ceil(width * scale_h), box[1])


def best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """The (height, width) that keeps most of the picture's pixels, then wastes the fewest.

    Of equals the first (LLaVA-NeXT).
    """
    height, width = size

    def rank(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, resolution[0] * resolution[1] - kept

    return min(resolutions, key=rank)


def canvas_size(size: Size, aspect: Size) -> Size:
    """Smallest canvas with the shape of `aspect` around a picture (a square for square aspects)."""
    height, width = size
    if height * aspect[1] >= width * aspect[0]:
        return height, -(-height * aspect[1] // aspect[0])
    return -(-width * aspect[0] // aspect[1]), width


def check_canvas(size: Size, *, what: str) -> Size:
    """`size` itself. Raises MediaError where a picture so large would be needed on the way."""
    if size[0] * size[1] > MAX_CANVAS:
        raise MediaError(
            f"{what} needs an intermediate picture of {size[1]} x {size[0]}",
            rule=f"at most {MAX_CANVAS} pixels",
            fix="crop the picture to a less extreme shape, or use the view policy 'squash'",
        )
    return size


# ---------------------------------------------------------------- pictures


def resize(picture: Picture, size: Size, *, interpolation: Interpolation = "bicubic") -> Picture:
    """Resample to `size`, with antialiasing when shrinking."""
    if size_of(picture) == size:
        return picture
    if isinstance(picture, PILImage):
        return picture.resize((size[1], size[0]), FILTERS[interpolation])
    if _compiled(picture, size, interpolation):
        return resize_window(picture, size, place=(0, 0, *size), interpolation=interpolation)
    if interpolation in ("lanczos", "nearest"):  # torch has no such filter, or rounds otherwise
        return to_tensor(to_pil(picture).resize((size[1], size[0]), FILTERS[interpolation]))
    pixels_CHW = _with_fourth(picture)
    for step in _passes(size_of(picture), size):
        pixels_CHW = interpolate(pixels_CHW[None], size=step, mode=interpolation, antialias=True)[0]
    return pixels_CHW[:3]


def resize_middle(
    picture: Picture, size: Size, *, middle: Size, interpolation: Interpolation = "bicubic"
) -> Picture:
    """`centre_crop` after `resize`; the middle is computed alone where it can be."""
    corner = _corner(size, middle)
    if (
        not isinstance(picture, PILImage)
        and size_of(picture) != size
        and min(corner) >= 0
        and _compiled(picture, size, interpolation)
    ):
        return resize_window(picture, size, place=(*corner, *middle), interpolation=interpolation)
    return centre_crop(resize(picture, size, interpolation=interpolation), middle)


def _compiled(picture: Tensor, size: Size, interpolation: Interpolation) -> bool:
    return len(_passes(size_of(picture), size)) == 1 and serves(picture, interpolation)


def _with_fourth(pixels_CHW: Tensor) -> Tensor:
    """Memory shared with Pillow has four bytes a pixel: all of them are resampled, as torch has a
    fast path for that and none for three out of four."""
    height, width = size_of(pixels_CHW)
    if pixels_CHW.stride() != (1, 4 * width, 4):
        return pixels_CHW
    return pixels_CHW.as_strided((4, height, width), (1, 4 * width, 4))


def _passes(size: Size, target: Size) -> list[Size]:
    """The sizes to go through so that torch rounds and clips where Pillow does.

    Both filter the rows, round to grey levels, then filter the columns; but from 13.0 on Pillow
    takes the columns first where the height shrinks by more than twice what the width does.
    """
    shrink, narrow = size[0] - target[0], size[1] - target[1]
    if COLUMNS_FIRST and shrink > 0 and shrink > 2 * narrow and narrow != 0:
        return [(target[0], size[1]), target]
    return [target]


def crop(picture: Picture, *, top: int, left: int, size: Size) -> Picture:
    """The window of `size` whose corner is (top, left); black where it leaves the picture."""
    bottom, right = top + size[0], left + size[1]
    if isinstance(picture, PILImage):
        return picture.crop((left, top, right, bottom))
    height, width = size_of(picture)
    inner = picture[..., max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    if size_of(inner) == size:
        return inner
    return _placed(inner, size, top=max(-top, 0), left=max(-left, 0), colour=(0, 0, 0))


def centre_crop(picture: Picture, size: Size) -> Picture:
    """The middle `size` of a picture, its corner rounded down; black where it is too small."""
    top, left = _corner(size_of(picture), size)
    return crop(picture, top=top, left=left, size=size)


def _corner(size: Size, middle: Size) -> tuple[int, int]:
    return (size[0] - middle[0]) // 2, (size[1] - middle[1]) // 2


def letterbox(picture: Picture, size: Size, *, colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    """The picture in the middle (corner rounded down) of a canvas of `size`, without resampling."""
    height, width = size_of(picture)
    if (height, width) == size:
        return picture
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return _placed(picture, size, top=top, left=left, colour=colour)


def _placed(
    picture: Picture, size: Size, *, top: int, left: int, colour: tuple[int, int, int]
) -> Picture:
    if isinstance(picture, PILImage):
        canvas = Image.new("RGB", (size[1], size[0]), colour)
        canvas.paste(picture, (left, top))
        return canvas
    height, width = size_of(picture)
    fill = torch.tensor(colour, dtype=torch.uint8)
    pixels_HWC = fill.expand(size[0], size[1], 3).contiguous()
    pixels_HWC[top : top + height, left : left + width] = picture.permute(1, 2, 0)
    return pixels_HWC.permute(2, 0, 1)


def colour_of(mean: Sequence[float]) -> tuple[int, int, int]:
    """The padding colour of LLaVA: int(mean * 255) per channel."""
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue
