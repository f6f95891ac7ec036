"""CLIP's cut as torchvision makes it on the file's own colours, and the square padding in training.

Legend: V views, C H W pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from PIL import Image
from PIL.Image import Image as PILImage
from torch import Tensor

from retinue.media.resize import (
    FILTERS,
    Picture,
    Size,
    check_canvas,
    crop,
    pixels,
    shortest_edge_size,
    size_of,
    to_pil,
)
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.types import Grid


class Stored(ViewPolicy):
    """Shorter side resized and middle cut before colours become RGB, as open_clip has it.

    A palette is resampled by its nearest entry, transparency weighs colours, and half a pixel of
    the cut goes to the even side (arXiv 2212.07143, mlfoundations/open_clip).
    """

    kind: Literal["stored"] = "stored"
    stored: ClassVar[bool] = True

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        grid = self.grid(size_of(image), stream)
        picture = image if isinstance(image, PILImage) else to_pil(image)
        size = shortest_edge_size(grid.size, max(stream.size))
        picture = resample(picture, size, FILTERS[stream.interpolation])
        top, left = (round((have - want) / 2) for have, want in zip(size, stream.size, strict=True))
        cut = crop(picture, top=top, left=left, size=stream.size)
        assert isinstance(cut, PILImage)
        return pixels(cut.convert("RGB"))[None], grid

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        check_canvas(shortest_edge_size(size, max(stream.size)), what="view policy 'stored'")
        return Grid(size=size)


def resample(picture: PILImage, size: Size, kind: Image.Resampling) -> PILImage:
    """Rows first, then columns, colours weighed by opacity: Pillow's order before its release 13.

    The order shows where a nearly clear pixel's colour is rounded between the two.
    """
    height, width = size
    if (picture.height, picture.width) == size:
        return picture
    mode = picture.mode
    through = {"RGBA": "RGBa", "LA": "La"}.get(mode)
    if through:
        picture = picture.convert(through)
    picture = picture.resize((width, picture.height), kind).resize((width, height), kind)
    return picture.convert(mode) if through else picture


def padded_square(picture: PILImage, colour: tuple[int, int, int]) -> PILImage:
    """The picture as RGB in the middle of a square of one colour, its corner rounded down."""
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), colour)
    width, height = picture.size
    canvas.paste(picture.convert("RGB"), ((side - width) // 2, (side - height) // 2))
    return canvas
