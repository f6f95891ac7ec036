"""Any resolution: an overview and the tiles of the best-fitting canvas (LLaVA-NeXT, 2024).

Legend: V views, C H W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import field_validator
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.media.resize import (
    Picture,
    Size,
    best_resolution,
    crop,
    fit_size,
    letterbox,
    pixels,
    size_of,
)
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.types import Grid

LLAVA_NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


class AnyRes(ViewPolicy):
    """The picture squashed to one view, then the tiles of a larger one, row by row: LLaVA-NeXT.

    pinpoints: the canvases to choose from, in pixels, multiples of the view's sides; order: what a
    pair means. LLaVA reads (width, height), transformers' LlavaNext (height, width); with the same
    list the two differ where equally good canvases tie.
    """

    kind: Literal["anyres"] = "anyres"
    pinpoints: tuple[tuple[int, int], ...] = LLAVA_NEXT
    order: Literal["wh", "hw"] = "wh"

    @field_validator("pinpoints")
    @classmethod
    def _some(cls, value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        if not value or min(min(pair) for pair in value) < 1:
            raise ValueError("pinpoints must be one or more pairs of positive numbers")
        return value

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        grid = self.grid(size_of(image), stream)
        height, width = stream.size
        picture = stream.prepare(image)
        canvas = self.canvas(picture, stream)
        tiles = [
            crop(canvas, top=row * height, left=col * width, size=stream.size)
            for row in range(grid.rows)
            for col in range(grid.cols)
        ]
        overview = stream.resize(picture, stream.size)
        return torch.stack([pixels(view) for view in (overview, *tiles)]), grid

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        """As the base; raises ConfigError where a canvas is no multiple of the view."""
        height, width = self.resolution(size)
        if height % stream.size[0] or width % stream.size[1]:
            raise ConfigError(
                f"a canvas of {width} x {height} (width x height) cannot be cut into views of "
                f"{stream.size[1]} x {stream.size[0]}",
                where="views.pinpoints",
                rule="pinpoints are multiples of the view's sides",
                fix="scale the pinpoints with the encoder's image size",
            )
        rows, cols = height // stream.size[0], width // stream.size[1]
        return Grid(rows=rows, cols=cols, overview=True, size=size)

    def resolution(self, size: Size) -> Size:
        """(height, width) of the canvas chosen for a picture of `size`."""
        step = -1 if self.order == "wh" else 1
        return best_resolution(
            size, [(pair[::step][0], pair[::step][1]) for pair in self.pinpoints]
        )

    def canvas(self, picture: Picture, stream: StreamSpec) -> Picture:
        """The picture resized into the chosen canvas, centred on black."""
        size = size_of(picture)
        box = self.resolution(size)
        return letterbox(stream.resize(picture, fit_size(size, box)), box)
