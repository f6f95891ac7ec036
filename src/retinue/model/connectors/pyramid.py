"""The tokens of a view, and behind them the same grid at half the resolution.

Legend: N views, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.ops.grid import pool2d
from retinue.types import Features, TokenShape


class PyramidSpec(UnarySpec):
    """Both sides of the operand's grid must be even."""

    kind: Literal["pyramid"] = "pyramid"

    @property
    def elastic(self) -> bool:
        return False

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        below = self.of.num_tokens(shapes, None)
        if below.grid is None or below.grid[0] % 2 or below.grid[1] % 2:
            raise ConfigError(
                f"a grid of {below.grid} under kind 'pyramid'",
                where="model.connector",
                rule="it halves the grid, so both sides must be even",
            )
        length = below.length + below.grid[0] * below.grid[1] // 4
        if budget is not None and budget != length:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this connector always gives {length}",
            )
        return TokenShape(length=length, grid=None)


class Pyramid(Unary):
    """Fine tokens, then means of every 2x2 of them; a layout chooses per view (LLaMA2-Accessory).

    Bilinear halving is that mean. Reference: Alpha-VLLM/LLaMA2-Accessory's `llama_ens5p2`, whose
    tiles are shown at half the resolution of the whole picture (SPHINX, arXiv 2311.07575).
    """

    Spec: ClassVar[type[ConnectorSpec]] = PyramidSpec
    spec: PyramidSpec

    def encode(self, features: EncoderFeatures) -> Features:
        below = self.of.encode(features)
        assert below.grid is not None
        grid_NLD = below.x_NLD[:, below.prefix :]
        half_NLD = pool2d(grid_NLD, grid=below.grid, out=(below.grid[0] // 2, below.grid[1] // 2))
        return Features(x_NLD=torch.cat([below.x_NLD, half_NLD], dim=1), grid=None)
