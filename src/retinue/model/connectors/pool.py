"""Average pooling on the token grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.ops.grid import pool2d
from retinue.types import Features, TokenShape


class PoolSpec(UnarySpec):
    """`stride`: side of the pooled square, which must divide the grid."""

    kind: Literal["pool"] = "pool"
    stride: int = Field(default=2, ge=1)

    @property
    def elastic(self) -> bool:
        return False

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        below = self.of.num_tokens(shapes, None)
        if below.grid is None or below.prefix:
            raise ConfigError(
                "kind 'pool' over tokens without a plain grid",
                where="model.connector",
                rule=f"its operand gives {below.length} tokens, {below.prefix} of them prefix",
                fix="take the encoder with prefix: false",
            )
        rows, cols = below.grid
        if rows % self.stride or cols % self.stride:
            raise ConfigError(
                f"stride {self.stride} on a grid of {rows}x{cols}",
                where="model.connector",
                rule="the stride must divide both sides",
            )
        grid = (rows // self.stride, cols // self.stride)
        length = grid[0] * grid[1]
        if budget is not None and budget != length:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this connector always gives {length}",
            )
        return TokenShape(length=length, grid=grid)


class Pool(Unary):
    """Average pooling of the token grid by a fixed stride (M3's operation, arXiv 2405.17430)."""

    Spec: ClassVar[type[ConnectorSpec]] = PoolSpec
    spec: PoolSpec

    def encode(self, features: EncoderFeatures) -> Features:
        below = self.of.encode(features)
        assert below.grid is not None
        out = (below.grid[0] // self.spec.stride, below.grid[1] // self.spec.stride)
        return Features(x_NLD=pool2d(below.x_NLD, grid=below.grid, out=out), grid=out)
