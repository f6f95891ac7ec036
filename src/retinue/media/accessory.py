"""The views of LLaMA2-Accessory's SPHINX models, with its resampling of normalised fp16 tensors.

Legend: V views, C H W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from retinue.media.resize import (
    Picture,
    Size,
    canvas_size,
    check_canvas,
    colour_of,
    letterbox,
    pixels,
    size_of,
)
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.types import Grid


class Accessory(ViewPolicy):
    """Views cut from one normalised square, resampled in fp16 without antialiasing, as floats.

    side: of the square in pixels; across: tiles per row and column, 1 for none. `quad` and `nine`
    show the same with Pillow's filters and grey levels. Source: Alpha-VLLM/LLaMA2-Accessory.
    """

    kind: Literal["accessory"] = "accessory"
    side: int = Field(default=448, gt=0)
    across: Literal[1, 2, 3] = 1

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        grid = self.grid(size_of(image), stream)
        canvas = canvas_size(grid.size, (1, 1))
        square = letterbox(stream.prepare(image), canvas, colour=colour_of(stream.mean))
        levels_CHW = pixels(stream.resize(square, (self.side, self.side)))
        x_1CHW = self._normal(levels_CHW, stream)[None]
        height, width = stream.size
        views = [_resampled(x_1CHW, stream.size)[0]]
        if self.across > 1:
            large = _resampled(x_1CHW, (height * self.across, width * self.across))[0]
            views += [
                large[:, row * height : (row + 1) * height, col * width : (col + 1) * width]
                for row in range(self.across)
                for col in range(self.across)
            ]
        return torch.stack(views), grid

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        check_canvas(canvas_size(size, (1, 1)), what="view policy 'accessory'")
        if self.across == 1:
            return Grid(size=size)
        return Grid(rows=self.across, cols=self.across, overview=True, size=size)

    def _normal(self, levels_CHW: Tensor, stream: StreamSpec) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (stream.mean, stream.std))
        return (levels_CHW.float() / 255 - mean) / std


def _resampled(x_1CHW: Tensor, size: Size) -> Tensor:
    """Bicubic between two roundings to fp16; unchanged where the size is right already."""
    if tuple(x_1CHW.shape[-2:]) == size:
        return x_1CHW
    half = interpolate(x_1CHW.half(), size=size, mode="bicubic", align_corners=False)
    return half.float()
