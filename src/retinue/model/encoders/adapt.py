"""Steps between a pixel stream and an encoder that wants it otherwise: statistics, size, rounding.

Legend: N views, C H W pixels.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from retinue.core.spec import Spec
from retinue.ops.pixels import renormalize


class Adapt(Spec):
    """size: side in pixels to resample to; filter: how, always without antialiasing.

    half: round to fp16 before resampling, as LLaMA2-Accessory does, for its very features.
    mean, std: what float pixels of the stream were normalised with, where that is not what the
    encoder wants; grey levels are normalised for the encoder in the first place.
    """

    size: int | None = Field(default=None, gt=0)
    filter: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    half: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __call__(
        self,
        x_NCHW: Tensor,
        *,
        final: bool,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> Tensor:
        """Normalised pixels of the stream -> those of the encoder, which wants `mean` and `std`.

        final: the stream came normalised, by the statistics of this step.
        """
        if final and self.mean is not None and self.std is not None:
            x_NCHW = renormalize(x_NCHW, old=(self.mean, self.std), new=(mean, std))
        if self.half:
            x_NCHW = x_NCHW.half()
        if self.size is not None and x_NCHW.shape[-2:] != (self.size, self.size):
            x_NCHW = resample(x_NCHW, self.size, filter=self.filter)
        return x_NCHW


def resample(x_NCHW: Tensor, side: int, *, filter: str) -> Tensor:
    """Square views of another size, without antialiasing, in the dtype that came."""
    corners = None if filter == "nearest" else False
    return interpolate(x_NCHW, size=(side, side), mode=filter, align_corners=corners)
