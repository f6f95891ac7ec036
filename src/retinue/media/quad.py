"""Sub-images: the whole picture on a square, then the tiles of a larger copy of that square.

Legend: V views, C H W pixels.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from retinue.media.resize import (
    Picture,
    Size,
    canvas_size,
    check_canvas,
    colour_of,
    crop,
    letterbox,
    pixels,
    size_of,
)
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.types import Grid


class Quad(ViewPolicy):
    """The padded picture, then its four quarters at twice the resolution (SPHINX, 2311.07575).

    colour: RGB levels 0..255 of the padding; default int(mean * 255).
    """

    kind: Literal["quad", "nine"] = "quad"
    colour: tuple[int, int, int] | None = None
    across: ClassVar[int] = 2

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        grid = self.grid(size_of(image), stream)
        height, width = stream.size
        colour = self.colour or colour_of(stream.mean)
        canvas = canvas_size(grid.size, stream.size)
        square = letterbox(stream.prepare(image), canvas, colour=colour)
        large = stream.resize(square, (height * self.across, width * self.across))
        tiles = [
            crop(large, top=row * height, left=col * width, size=stream.size)
            for row in range(self.across)
            for col in range(self.across)
        ]
        views = [stream.resize(square, stream.size), *tiles]
        return torch.stack([pixels(view) for view in views]), grid

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        check_canvas(canvas_size(size, stream.size), what=f"view policy {self.kind!r}")
        return Grid(rows=self.across, cols=self.across, overview=True, size=size)


class Nine(Quad):
    """The padded picture, then its nine parts at three times the resolution (SPHINX-2k)."""

    kind: Literal["nine"] = "nine"
    across: ClassVar[int] = 3
