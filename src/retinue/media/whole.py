"""Policies with one view, the whole picture: cut to the middle, padded to a square, or squashed.

Legend: V views, C H W pixels.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from retinue.media.resize import (
    Picture,
    Size,
    canvas_size,
    check_canvas,
    colour_of,
    letterbox,
    pixels,
    shortest_edge_size,
    size_of,
)
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.types import Grid


class Single(ViewPolicy):
    """Shorter side resized, middle cut out: CLIP's own preprocessing (Radford et al. 2021, 2.5).

    shortest_edge: length of the shorter side before the cut; default: the view's longer side.
    axes: `guessed` is the CLIPImageProcessor of the originals' time (transformers 4.37), which
    takes a picture exactly three pixels high for one stored channel by channel.
    """

    kind: Literal["single"] = "single"
    shortest_edge: int | None = Field(default=None, gt=0)
    axes: Literal["upright", "guessed"] = "upright"

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        size = size_of(image)
        grid = self.grid(size, stream)
        picture = stream.prepare(image)
        if self._misread(size):
            picture = stream.prepare(pixels(picture).permute(1, 2, 0))
        picture = stream.resize_middle(picture, self._resized(size, stream))
        return pixels(picture)[None], grid

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        check_canvas(self._resized(size, stream), what="view policy 'single'")
        return Grid(size=size)

    def _misread(self, size: Size) -> bool:
        return self.axes == "guessed" and size[0] == 3

    def _resized(self, size: Size, stream: StreamSpec) -> Size:
        read = (size[1], 3) if self._misread(size) else size
        return shortest_edge_size(read, self.shortest_edge or max(stream.size))


class Pad(ViewPolicy):
    """Padded to the view's shape with the mean colour, then resized: LLaVA-1.5's `pad`.

    colour: RGB levels 0..255; default int(mean * 255).
    """

    kind: Literal["pad"] = "pad"
    colour: tuple[int, int, int] | None = None

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        grid = self.grid(size_of(image), stream)
        colour = self.colour or colour_of(stream.mean)
        canvas = canvas_size(grid.size, stream.size)
        picture = letterbox(stream.prepare(image), canvas, colour=colour)
        return pixels(stream.resize(picture, stream.size))[None], grid

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        check_canvas(canvas_size(size, stream.size), what="view policy 'pad'")
        return Grid(size=size)


class Squash(ViewPolicy):
    """Resized to the view without keeping its shape, as SigLIP has it (Zhai et al. 2023)."""

    kind: Literal["squash"] = "squash"

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        picture = stream.prepare(image)
        return pixels(stream.resize(picture, stream.size))[None], Grid(size=size_of(image))

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        return Grid(size=size)
