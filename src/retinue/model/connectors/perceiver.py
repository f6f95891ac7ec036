"""Perceiver resampler: any number of patch tokens becomes a fixed number of latents.

Legend: N views, M media of a row, F frames, L tokens of a frame, K latents, D width, H heads,
E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.linear import Dense
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.ops.attention import attend, plan_full
from retinue.types import Features, TokenShape


class PerceiverSpec(UnarySpec):
    """`latents` tokens per view, the operand's width unchanged; heads of `head_width` numbers.

    frames, media: how many learned vectors mark a token's frame, and a row's medium by its place;
    absent = none, as every released model has it.
    """

    kind: Literal["perceiver"] = "perceiver"
    depth: int = Field(default=6, ge=1)
    latents: int = Field(default=64, ge=1)
    heads: int = Field(default=8, ge=1)
    head_width: int = Field(default=64, ge=1)
    ff_mult: int = Field(default=4, ge=1)
    frames: int | None = Field(default=None, ge=1)
    media: int | None = Field(default=None, ge=1)

    @property
    def elastic(self) -> bool:
        return False

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        self.of.num_tokens(shapes, None)
        if budget is not None and budget != self.latents:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this resampler always gives {self.latents}",
            )
        return TokenShape(length=self.latents, grid=None)


class FeedForward(nn.Sequential):
    """LayerNorm, then two linear layers without biases around an exact GELU."""

    def __init__(self, width: int, mult: int) -> None:
        super().__init__(
            nn.LayerNorm(width),
            Dense(width, width * mult, bias=False),
            nn.GELU(),
            Dense(width * mult, width, bias=False),
        )


class Look(nn.Module):
    """Latents look at the media and at themselves (arXiv 2204.14198, section 2.1)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = Dense(width, inner, bias=False)
        self.to_kv = Dense(width, inner * 2, bias=False)
        self.to_out = Dense(inner, width, bias=False)

    def forward(self, x_NLD: Tensor, z_NKD: Tensor) -> Tensor:
        z_NKD = self.norm_latents(z_NKD)
        both = torch.cat([self.norm_media(x_NLD), z_NKD], dim=1)
        q_NHKE = self.to_q(z_NKD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(both).unflatten(-1, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        out_NKHE = attend(q_NHKE, k, v, plan=plan_full())
        out: Tensor = self.to_out(out_NKHE.flatten(2))
        return out


class Perceiver(Unary):
    """Flamingo's resampler, every view by itself (Alayrac et al. 2022, arXiv 2204.14198).

    Parameter names are those of OpenFlamingo (arXiv 2308.01390) below `perceiver.`.
    """

    Spec: ClassVar[type[ConnectorSpec]] = PerceiverSpec
    spec: PerceiverSpec

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        width = spec.width(shapes, lm_width)
        self.latents = nn.Parameter(torch.empty(spec.latents, width))
        if spec.frames:
            self.frame_embs = nn.Parameter(torch.empty(spec.frames, width))
        if spec.media:
            self.media_time_embs = nn.Parameter(torch.empty(spec.media, 1, width))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [Look(width, spec.heads, spec.head_width), FeedForward(width, spec.ff_mult)]
            )
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Latents and marks are standard normal, as the original draws them."""
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter)

    def encode(self, features: EncoderFeatures) -> Features:
        below = self.of.encode(features)
        z_NMKD = self.resample(below.x_NLD[:, None, None])
        return Features(x_NLD=z_NMKD[:, 0], grid=None)

    def resample(self, x_NMFLD: Tensor) -> Tensor:
        """(N, M, F, L, D) media of rows, of some frames each -> (N, M, K, D)."""
        if self.spec.frames:
            x_NMFLD = x_NMFLD + self.frame_embs[: x_NMFLD.shape[2], None]
        x = x_NMFLD.flatten(2, 3)
        if self.spec.media:
            x = x + self.media_time_embs[: x.shape[1]]
        x_NLD = x.flatten(0, 1)
        z_NKD = self.latents.to(x_NLD.dtype).expand(len(x_NLD), -1, -1)
        for pair in self.layers:
            assert isinstance(pair, nn.ModuleList)
            z_NKD = z_NKD + pair[0](x_NLD, z_NKD)
            z_NKD = z_NKD + pair[1](z_NKD)
        out: Tensor = self.norm(z_NKD).unflatten(0, x.shape[:2])
        return out
