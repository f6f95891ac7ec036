"""A random part of the picture, for training.

Legend: V views, C H W pixels.
"""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from retinue.media.resize import Picture, Size, crop, pixels, size_of
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.types import Grid

TRIES = 10


class RandomCrop(ViewPolicy):
    """A window of random area and shape, resized to the view (Szegedy et al. 2014, 1409.4842).

    scale: its share of the picture's area; ratio: its width over its height. Draws come from
    torch's global generator in torchvision's order: LLaMA2-Accessory's `random_resized_crop`.
    """

    kind: Literal["random_crop"] = "random_crop"
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = Field(default=(0.75, 1.3333))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("scale and ratio are pairs, smallest first, above 0")
        return self

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        size = size_of(image)
        top, left, height, width = self.window(size)
        part = crop(stream.prepare(image), top=top, left=left, size=(height, width))
        return pixels(stream.resize(part, stream.size))[None], self.grid(size, stream)

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        return Grid(size=size)

    def window(self, size: Size) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the next window; the middle after ten misfits."""
        height, width = size
        logs = torch.log(torch.tensor(self.ratio))
        for _ in range(TRIES):
            area = height * width * torch.empty(1).uniform_(*self.scale).item()
            shape = math.exp(torch.empty(1).uniform_(float(logs[0]), float(logs[1])).item())
            across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < across <= width and 0 < down <= height:
                top = int(torch.randint(0, height - down + 1, size=(1,)).item())
                left = int(torch.randint(0, width - across + 1, size=(1,)).item())
                return top, left, down, across
        down, across = height, width
        if width / height < self.ratio[0]:
            down = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            across = round(height * self.ratio[1])
        return (height - down) // 2, (width - across) // 2, down, across


class CentreCrop(ViewPolicy):
    """Shorter side resized to the view, the middle cut out, halves rounded to even (torchvision).

    `single` is CLIP's own, which rounds the corner down: LLaMA2-Accessory's `resized_center_crop`.
    """

    kind: Literal["centre_crop"] = "centre_crop"

    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        size = size_of(image)
        short = max(stream.size)
        if size[1] <= size[0]:
            target = (int(short * size[0] / size[1]), short)
        else:
            target = (short, int(short * size[1] / size[0]))
        picture = stream.resize(stream.prepare(image), target)
        top, left = (round((t - s) / 2) for t, s in zip(target, stream.size, strict=True))
        part = crop(picture, top=top, left=left, size=stream.size)
        return pixels(part)[None], self.grid(size, stream)

    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        return Grid(size=size)
