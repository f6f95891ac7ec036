"""Grey levels -> normalised pixels, on the device they already are on.

Legend: N views, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(
    pixels_NCHW: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    rescale: float = 1 / 255,
) -> Tensor:
    """(x * rescale - mean) / std in fp32, then cast; floats are final already and only cast."""
    if pixels_NCHW.dtype.is_floating_point:
        return pixels_NCHW.to(dtype)
    device = pixels_NCHW.device
    mean_C11 = torch.tensor(mean, device=device).view(-1, 1, 1)
    std_C11 = torch.tensor(std, device=device).view(-1, 1, 1)
    return ((pixels_NCHW.float() * rescale - mean_C11) / std_C11).to(dtype)
