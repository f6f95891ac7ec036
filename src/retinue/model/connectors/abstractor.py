"""C-Abstractor: convolutional blocks around a pooling to a fixed number of tokens.

Legend: N views, L tokens of a view, D width, C inner width, R S rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.linear import Dense
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class AbstractorSpec(UnarySpec):
    """tokens: a square number; hidden: inner width; depth: blocks on either side of the pooling.

    mlp_depth: linear layers of the read-out; places: learned positions are added first.
    """

    kind: Literal["abstractor"] = "abstractor"
    tokens: int = Field(default=144, ge=1)
    hidden: int = Field(default=1024, ge=1)
    depth: int = Field(default=3, ge=1)
    mlp_depth: int = Field(default=2, ge=1)
    places: bool = True
    out: int | None = None

    @field_validator("tokens")
    @classmethod
    def _square(cls, tokens: int) -> int:
        if isqrt(tokens) ** 2 != tokens:
            near = isqrt(tokens)
            raise ValueError(f"{tokens} is no square; use {near**2} or {(near + 1) ** 2}")
        return tokens

    @property
    def elastic(self) -> bool:
        return False

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        self.cells(shapes)
        if budget is not None and budget != self.tokens:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this C-Abstractor always gives {self.tokens}",
                fix="drop the budget, or wrap the connector in kind: elastic",
            )
        side = isqrt(self.tokens)
        return TokenShape(length=self.tokens, grid=(side, side))

    def cells(self, shapes: Mapping[str, EncoderShape]) -> tuple[int, int]:
        """Rows and columns of what it reads. Raises ConfigError where there is no bare grid."""
        below = self.of.num_tokens(shapes, None)
        if below.grid is None or below.prefix:
            raise ConfigError(
                "kind 'abstractor' over tokens without a plain grid",
                where="model.connector",
                rule=f"its operand gives {below.length} tokens, {below.prefix} of them prefix",
                fix="take the encoder with prefix: false",
            )
        return below.grid

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.out or lm_width


class Abstractor(Unary):
    """Blocks, adaptive average pooling, blocks, MLP (Honeybee, arXiv 2312.06742; MM1's connector).

    Parameter names are Honeybee's; its row of `pos_emb` for a class token has no place here.
    """

    Spec: ClassVar[type[ConnectorSpec]] = AbstractorSpec
    spec: AbstractorSpec

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        wide, out = spec.of.width(shapes, lm_width), spec.width(shapes, lm_width)
        self.cells: tuple[int, int] = spec.cells(shapes)
        self.side = isqrt(spec.tokens)
        if spec.places:
            self.pos_emb = nn.Parameter(torch.empty(1, self.cells[0] * self.cells[1], wide))
        self.net = nn.Sequential(
            stage(wide, spec.hidden, depth=spec.depth),
            nn.AdaptiveAvgPool2d(self.side),
            stage(spec.hidden, spec.hidden, depth=spec.depth),
        )
        layers: list[nn.Module] = [Dense(spec.hidden, out)]
        for _ in range(spec.mlp_depth - 1):
            layers += [nn.SiLU(), Dense(out, out)]
        self.readout = nn.Sequential(*layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions are normal with standard deviation 0.02, as the original draws them."""
        if self.spec.places:
            nn.init.trunc_normal_(self.pos_emb, std=0.02)

    def encode(self, features: EncoderFeatures) -> Features:
        x_NLD = self.of.encode(features).x_NLD
        if self.spec.places:
            x_NLD = x_NLD + self.pos_emb.to(x_NLD.dtype)
        x_NDRS = x_NLD.transpose(1, 2).unflatten(2, self.cells)
        y_NLC = self.net(x_NDRS).flatten(2).transpose(1, 2)
        return Features(x_NLD=self.readout(y_NLC), grid=(self.side, self.side))


class Conv(nn.Conv2d):
    """A convolution without bias, with torch's own initialisation."""

    def __init__(self, narrow: int, wide: int, *, kernel: int = 1, groups: int = 1) -> None:
        super().__init__(narrow, wide, kernel, padding=kernel // 2, groups=groups, bias=False)


class Squeeze(nn.Conv2d):
    """A 1x1 convolution with bias, with torch's own initialisation."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__(narrow, wide, 1)


class Norm(nn.LayerNorm):
    """Layer normalisation of every cell's channels: (N, C, R, S) -> the same."""

    def forward(self, x_NCRS: Tensor) -> Tensor:
        return super().forward(x_NCRS.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution, norm and, if it says so, SiLU."""

    def __init__(
        self, narrow: int, wide: int, *, kernel: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = Conv(narrow, wide, kernel=kernel, groups=groups)
        self.bn, self.act = Norm(wide), act

    def forward(self, x_NCRS: Tensor) -> Tensor:
        y_NCRS: Tensor = self.bn(self.conv(x_NCRS))
        return F.silu(y_NCRS) if self.act else y_NCRS


class Gate(nn.Module):
    """Squeeze-and-excitation (arXiv 1709.01507): channels scaled by what the whole map says."""

    def __init__(self, width: int, *, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Squeeze(width, inner), Squeeze(inner, width)

    def forward(self, x_NCRS: Tensor) -> Tensor:
        mean_NC11 = x_NCRS.mean((2, 3), keepdim=True)
        gated: Tensor = x_NCRS * self.fc2(F.silu(self.fc1(mean_NC11))).sigmoid()
        return gated


class Block(nn.Module):
    """RegNet's residual bottleneck (arXiv 2003.13678) with groups of one channel, and its gate."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(narrow, wide)
        self.conv2 = ConvNorm(wide, wide, kernel=3, groups=wide)
        self.se = Gate(wide, inner=max(1, round(narrow / 4)))
        self.conv3 = ConvNorm(wide, wide, act=False)
        same = narrow == wide
        self.downsample = nn.Identity() if same else ConvNorm(narrow, wide, act=False)

    def forward(self, x_NCRS: Tensor) -> Tensor:
        y_NCRS = self.conv3(self.se(self.conv2(self.conv1(x_NCRS))))
        return F.silu(y_NCRS + self.downsample(x_NCRS))


def stage(narrow: int, wide: int, *, depth: int) -> nn.Sequential:
    """`depth` blocks named b1, b2, …, of which the first changes the width."""
    made = nn.Sequential()
    for number in range(depth):
        made.add_module(f"b{number + 1}", Block(narrow if number == 0 else wide, wide))
    return made
