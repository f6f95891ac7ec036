"""A pre-norm vision transformer with every choice open, as ModelZoo's ViTModel has them.

Legend: N views, C H W pixels, L tokens, P patches, D width, G heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.clip import MEAN, STD
from retinue.model.encoders.vit import ViT, ViTSpec


class PlainViTConfig(PreTrainedConfig):
    """Sizes and choices. class_token: one before the patches; patchify: a convolution, or a linear
    map of patches whose channels vary fastest; positions: a learned table, the fixed sines, or
    none; embed_norm: a LayerNorm after the positions, always with eps 1e-5.
    """

    model_type = "retinue_plain_vit"

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        patch_size: Sequence[int] = (16, 16),
        num_channels: int = 3,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-5,
        class_token: bool = True,
        patchify: str = "conv",
        patch_bias: bool = True,
        positions: str | None = "learned",
        embed_norm: bool = False,
        final_norm: bool = True,
        attention_bias: bool = True,
        output_bias: bool = True,
        mlp_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        self.image_size, self.patch_size = list(image_size), list(patch_size)
        self.num_channels, self.hidden_size = num_channels, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size, self.hidden_act = intermediate_size, hidden_act
        self.layer_norm_eps, self.class_token = layer_norm_eps, class_token
        self.patchify, self.patch_bias, self.positions = patchify, patch_bias, positions
        self.embed_norm, self.final_norm = embed_norm, final_norm
        self.attention_bias, self.output_bias = attention_bias, output_bias
        self.mlp_bias = mlp_bias
        super().__init__(**kwargs)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        (high, wide), (down, across) = self.image_size, self.patch_size
        return high // down, wide // across


AutoConfig.register(PlainViTConfig.model_type, PlainViTConfig, exist_ok=True)


class PlainViTSpec(ViTSpec):
    kind: Literal["plain_vit"] = "plain_vit"

    def shape(self, config: Any) -> EncoderShape:
        return EncoderShape(
            width=config.hidden_size,
            grid=config.grid,
            prefix=int(config.class_token),
            num_layers=config.num_hidden_layers,
            size=(config.image_size[0], config.image_size[1]),
            mean=self.mean or MEAN,
            std=self.std or STD,
            stream=self.stream,
        )


class PlainViT(ViT):
    """Pre-norm vision transformer whose class token, positions, patch map and norms are chosen.

    Source: ViTModel of Cerebras ModelZoo 2.x, after Dosovitskiy et al. (arXiv 2010.11929).
    """

    Spec: ClassVar[type[EncoderSpec]] = PlainViTSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = PlainNet(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return self.net.embed(pixels_NCHW)

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.blocks

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.norm(x_NLD)


class PlainNet(nn.Module):
    """Patches, positions, blocks and norms of `PlainViT`."""

    def __init__(self, config: PlainViTConfig) -> None:
        super().__init__()
        width, patch, conv = config.hidden_size, config.patch_size, config.patchify == "conv"
        self.config, rows = config, config.grid[0] * config.grid[1] + int(config.class_token)
        inside = config.num_channels * patch[0] * patch[1]
        self.patches: nn.Module
        if conv:
            self.patches = nn.Conv2d(
                config.num_channels,
                width,
                (patch[0], patch[1]),
                stride=(patch[0], patch[1]),
                bias=config.patch_bias,
            )
        else:
            self.patches = nn.Linear(inside, width, bias=config.patch_bias)
        self.cls = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.positions: Tensor | None = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(rows, width))
        elif config.positions == "fixed":
            del self.positions
            self.register_buffer("positions", sines(config), persistent=False)
        self.embed_norm = nn.LayerNorm(width, eps=1e-5) if config.embed_norm else nn.Identity()
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_hidden_layers))
        eps = config.layer_norm_eps
        self.norm = nn.LayerNorm(width, eps=eps) if config.final_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02 for the class token and a learned table."""
        for own in (self.cls, self.positions):
            if isinstance(own, nn.Parameter):
                nn.init.trunc_normal_(own, std=0.02, a=-0.04, b=0.04)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        """Class token first, then patches; in the table of positions the class token is last."""
        if self.config.patchify == "conv":
            x_NPD = self.patches(pixels_NCHW).flatten(2).transpose(1, 2)
        else:
            (rows, cols), (down, across) = self.config.grid, self.config.patch_size
            cut = pixels_NCHW.unflatten(3, (cols, across)).unflatten(2, (rows, down))
            x_NPD = self.patches(cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        count = x_NPD.shape[1]
        if self.positions is not None:
            x_NPD = x_NPD + self.positions[:count].to(x_NPD.dtype)
        if self.cls is None:
            x_NLD: Tensor = self.embed_norm(x_NPD)
            return x_NLD
        first_D: Tensor = self.cls
        if self.positions is not None:
            first_D = first_D + self.positions[count].to(first_D.dtype)
        first_N1D = first_D.expand(len(x_NPD), 1, -1)
        return self.embed_norm(torch.cat([first_N1D, x_NPD], dim=1))


class PlainBlock(nn.Module):
    """Pre-norm attention and two linear layers."""

    def __init__(self, config: PlainViTConfig) -> None:
        super().__init__()
        width, wide, bias = config.hidden_size, config.intermediate_size, config.attention_bias
        self.heads, self.act = config.num_attention_heads, ACT2FN[config.hidden_act]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, width, bias=config.output_bias)
        self.fc1 = nn.Linear(width, wide, bias=config.mlp_bias)
        self.fc2 = nn.Linear(wide, width, bias=config.mlp_bias)

    def forward(self, x_NLD: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, L, D) -> (N, L, D); all tokens see all (the mask argument keeps the common call)."""
        y_NLD = self.norm1(x_NLD)
        q_NGLK, k_NGLK, v_NGLK = (
            part(y_NLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q_NGLK, k_NGLK, v_NGLK).transpose(1, 2).flatten(2)
        x_NLD = x_NLD + self.out(mixed)
        found: Tensor = x_NLD + self.fc2(self.act(self.fc1(self.norm2(x_NLD))))
        return found


def sines(config: PlainViTConfig) -> Tensor:
    """(P + 1 or P, D): a quarter each of sin and cos of the column, then of the row; zeros last.

    The class token's row is the last one and holds zeros.
    """
    quarter = config.hidden_size // 4
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float) / quarter)
    rows, cols = config.grid
    row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    angles = [place.flatten()[:, None] * omega for place in (col, row)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(table, (0, 0, 0, int(config.class_token)))
