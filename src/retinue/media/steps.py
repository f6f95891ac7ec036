"""Pictures prepared by a list of named steps, as ModelZoo's `transforms` writes them.

Legend: C H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
Picture = Image.Image | Tensor


def expand_to_square(picture: Any, *, background_color: Sequence[int] = (0, 0, 0)) -> Picture:
    """Centred on a square canvas of one colour."""
    width, height = picture.size
    side = max(width, height)
    if width == height:
        return cast(Picture, picture)
    canvas = Image.new("RGB", (side, side), tuple(int(level) for level in background_color))
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas


def resize(
    picture: Any,
    *,
    size: int | Sequence[int],
    interpolation: str = "bilinear",
    max_size: int | None = None,
    antialias: bool = True,
) -> Picture:
    """To (height, width), or the shorter side to one number; max_size caps the longer side."""
    width, height = picture.size
    if isinstance(size, int) or len(size) == 1:
        edge = size if isinstance(size, int) else size[0]
        short, long = min(width, height), max(width, height)
        new = int(edge * long / short)
        if max_size is not None and new > max_size:
            edge, new = int(max_size * edge / new), max_size
        goal = (edge, new) if width <= height else (new, edge)
    else:
        goal = (int(size[1]), int(size[0]))
    if goal == (width, height):
        return cast(Picture, picture)
    return cast(Picture, picture.resize(goal, FILTERS[interpolation]))


def center_crop(picture: Any, *, size: int | Sequence[int]) -> Picture:
    """The middle, black where the picture is smaller."""
    high, wide = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    width, height = picture.size
    if width < wide or height < high:
        left, top = max(0, wide - width) // 2, max(0, high - height) // 2
        canvas = Image.new("RGB", (max(width, wide), max(height, high)))
        canvas.paste(picture, (left, top))
        picture = canvas
        width, height = picture.size
    top, left = round((height - high) / 2.0), round((width - wide) / 2.0)
    return cast(Picture, picture.crop((left, top, left + wide, top + high)))


def to_tensor(picture: Any) -> Picture:
    """(C, H, W) float32 in units of 0..1."""
    levels_HWC = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return levels_HWC.permute(2, 0, 1).contiguous().float() / 255


def normalize(
    picture: Any, *, mean: Sequence[float], std: Sequence[float], inplace: bool = False
) -> Picture:
    """Less the mean, over the deviation, per channel."""
    mean_C11, std_C11 = (torch.tensor(one).view(-1, 1, 1) for one in (mean, std))
    return cast(Tensor, (picture - mean_C11) / std_C11)


STEPS: dict[str, Callable[..., Picture]] = {
    "expand_to_square": expand_to_square,
    "resize": resize,
    "center_crop": center_crop,
    "to_tensor": to_tensor,
    "normalize": normalize,
}


class Steps:
    """The steps of a `transforms` list in order. Raises ConfigError for one that is not known."""

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self.steps = []
        for number, step in enumerate(steps):
            given = dict(step)
            name = str(given.pop("name", ""))
            if name not in STEPS:
                hint = nearest(name, list(STEPS))
                raise ConfigError(
                    f"transform {name!r}" + (f"; did you mean {hint!r}?" if hint else ""),
                    where=f"transforms.{number}",
                    rule=f"known: {', '.join(STEPS)}; random ones are not",
                )
            self.steps.append((STEPS[name], given))

    def __call__(self, picture: Image.Image) -> Tensor:
        """(C, H, W) of a picture; its transparency is dropped, not painted over."""
        found: Any = picture.convert("RGB")
        for step, given in self.steps:
            found = step(found, **given)
        assert isinstance(found, Tensor), "the last step of a list gives a tensor"
        return found
