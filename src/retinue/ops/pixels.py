"""uint8 pixels -> what an encoder reads. Pixels stay uint8 until they are on the device.

Legend: N views, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def normalize(
    pixels_NCHW: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    rescale: float = 1 / 255,
) -> Tensor:
    """(pixels * rescale - mean) / std per channel, as `dtype`.

    uint8 (N, C, H, W) in; float pixels are final already and are only cast. float32 has the very
    bits of transformers' CLIPImageProcessor (rescaled in float64, rounded to float32, subtracted,
    divided); half types take one multiply-add, at most one unit in the last place away.
    """
    if pixels_NCHW.is_floating_point():
        return pixels_NCHW.to(dtype)
    assert pixels_NCHW.dtype == torch.uint8, f"pixels are uint8 or final, not {pixels_NCHW.dtype}"
    if dtype in HALVES:
        return _affine(pixels_NCHW, mean=mean, std=std, rescale=rescale).to(dtype)
    return _plain(pixels_NCHW, mean=mean, std=std, rescale=rescale).to(dtype)


def renormalize(
    pixels_NCHW: Tensor,
    *,
    old: tuple[Sequence[float], Sequence[float]],
    new: tuple[Sequence[float], Sequence[float]],
) -> Tensor:
    """Floats normalised with the (mean, std) `old` -> the same picture normalised with `new`."""
    mean, std = (_per_channel(values, pixels_NCHW) for values in old)
    other_mean, other_std = (_per_channel(values, pixels_NCHW) for values in new)
    return (pixels_NCHW * std + mean - other_mean) / other_std


def _plain(
    pixels_NCHW: Tensor, *, mean: Sequence[float], std: Sequence[float], rescale: float
) -> Tensor:
    if rescale == 1 / 255:  # one float32 division rounds every one of the 256 values the same way
        x_NCHW = pixels_NCHW.to(torch.float32).div_(255)
    else:
        levels = torch.arange(256, dtype=torch.float64).mul(rescale).to(torch.float32)
        x_NCHW = levels.to(pixels_NCHW.device)[pixels_NCHW.long()]
    return x_NCHW.sub_(_per_channel(mean, pixels_NCHW)).div_(_per_channel(std, pixels_NCHW))


def _affine(
    pixels_NCHW: Tensor, *, mean: Sequence[float], std: Sequence[float], rescale: float
) -> Tensor:
    scale = _per_channel([rescale / s for s in std], pixels_NCHW)
    shift = _per_channel([-m / s for m, s in zip(mean, std, strict=True)], pixels_NCHW)
    return torch.addcmul(shift, pixels_NCHW.to(torch.float32), scale)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
