"""A small vision transformer to train from scratch: convolutional stem, fixed 2-D positions.

Legend: N views, C H W pixels, L tokens, D width, G heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.vit import ViT, ViTSpec

HALF = (0.5, 0.5, 0.5)


class PatchesConfig(PreTrainedConfig):
    """Sizes of the small encoder. `stem`: widths of stride-2 convolutions before the patches."""

    model_type = "retinue_patches"

    def __init__(
        self,
        image_size: int = 64,
        patch_size: int = 8,
        hidden_size: int = 128,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        intermediate_size: int = 384,
        stem: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.stem = list(stem)
        super().__init__(**kwargs)


AutoConfig.register(PatchesConfig.model_type, PatchesConfig, exist_ok=True)


class PatchesSpec(ViTSpec):
    kind: Literal["patches"] = "patches"

    def shape(self, config: Any) -> EncoderShape:
        return self.square(config, prefix=0, mean=HALF, std=HALF)


class Patches(ViT):
    """Small pre-norm vision transformer for training from scratch.

    Convolutions before the patches as in Xiao et al. 2021 (arXiv 2106.14881), fixed sine-cosine
    positions as in MoCo v3 (arXiv 2104.02057).
    """

    Spec: ClassVar[type[EncoderSpec]] = PatchesSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = PatchNet(config, self.shape.grid)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return self.net.embed(pixels_NCHW)

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.blocks

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.norm(x_NLD)


class Conv(nn.Conv2d):
    """A convolution with torch's own initialisation, which fits widths of any size."""


class Dense(nn.Linear):
    """A linear layer whose output has the variance of its input, times `gain` squared."""

    def __init__(self, narrow: int, wide: int, *, gain: float = 1.0) -> None:
        self.gain = gain
        super().__init__(narrow, wide)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.gain * self.in_features**-0.5)
        nn.init.zeros_(self.bias)


def norm(width: int) -> nn.Module:
    """Group normalisation (arXiv 1803.08494): no statistics of other pictures."""
    return nn.GroupNorm(math.gcd(8, width), width)


class PatchNet(nn.Module):
    """Stem, positions, blocks and final norm of `Patches`."""

    def __init__(self, config: PatchesConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        channels, left = 3, config.patch_size
        for width in config.stem:
            stem += [Conv(channels, width, 3, stride=2, padding=1), norm(width), nn.GELU()]
            channels, left = width, left // 2
        stem.append(Conv(channels, config.hidden_size, left, stride=left))
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.ModuleList(PatchBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.grid, self.width = grid, config.hidden_size

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        """Patches with their positions: (N, rows * cols, D)."""
        x_NLD = self.stem(pixels_NCHW).flatten(2).transpose(1, 2)
        place_LD = sincos_2d(*self.grid, self.width, device=x_NLD.device)
        added: Tensor = x_NLD + place_LD.to(x_NLD.dtype)
        return added


class PatchBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        calm = (2 * config.num_hidden_layers) ** -0.5  # what leaves a block adds up
        self.qkv, self.out = Dense(width, 3 * width), Dense(width, width, gain=calm)
        self.up = Dense(width, config.intermediate_size)
        self.down = Dense(config.intermediate_size, width, gain=calm)

    def forward(self, x_NLD: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, L, D) -> (N, L, D); all tokens see all (the mask argument keeps the common call)."""
        q_NGLK, k_NGLK, v_NGLK = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x_NLD)).chunk(3, dim=-1)
        )
        # matmul-softmax: at a few hundred tokens its backward on CPU beats the fused kernel's
        scores = (q_NGLK @ k_NGLK.transpose(-1, -2)) / math.sqrt(q_NGLK.shape[-1])
        mixed = (scores.softmax(-1) @ v_NGLK).transpose(1, 2).flatten(2)
        x_NLD = x_NLD + self.out(mixed)
        return x_NLD + self.down(F.gelu(self.up(self.norm2(x_NLD))))


def sincos_2d(rows: int, cols: int, width: int, *, device: torch.device) -> Tensor:
    """(rows * cols, width): a quarter each of sin and cos of the row and of the column."""
    quarter = width // 4
    omega = 1.0 / 100.0 ** (torch.arange(quarter, device=device) / max(quarter, 1))
    row, col = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(cols, device=device), indexing="ij"
    )
    angles = [place.flatten()[:, None] * omega for place in (row, col)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, width - table.shape[1]))
