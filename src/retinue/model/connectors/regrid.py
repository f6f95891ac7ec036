"""A coarse grid of tokens brought to a finer one, with its mean as a class token.

Legend: N views, L tokens, R C rows and columns, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class RegridSpec(UnarySpec):
    """`repeat`: how many times each cell stands beside and below itself; `mean`: a prefix token."""

    kind: Literal["regrid"] = "regrid"
    repeat: int = Field(default=1, ge=1)
    mean: bool = False

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        below = self.of.num_tokens(shapes, None)
        if below.grid is None or below.prefix:
            raise ConfigError(
                "tokens without a bare grid under kind 'regrid'",
                where="model.connector",
                rule="cells are repeated in place, so each token needs one",
                fix="take the encoder with prefix: false",
            )
        rows, cols = below.grid[0] * self.repeat, below.grid[1] * self.repeat
        length = rows * cols + int(self.mean)
        if budget is not None and budget != length:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this connector always gives {length}",
            )
        return TokenShape(length=length, grid=(rows, cols), prefix=int(self.mean))


class Regrid(Unary):
    """Cells repeated to a finer grid, their mean in front: how SPHINX puts a ConvNeXt beside ViTs.

    Source: SPHINX (Lin et al. 2023, arXiv 2311.07575, section 3.2).
    """

    Spec: ClassVar[type[ConnectorSpec]] = RegridSpec
    spec: RegridSpec

    def encode(self, features: EncoderFeatures) -> Features:
        below = self.of.encode(features)
        assert below.grid is not None
        times = self.spec.repeat
        x_NRCD = below.x_NLD.unflatten(1, below.grid)
        if times > 1:
            x_NRCD = x_NRCD.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
        x_NLD = x_NRCD.flatten(1, 2)
        if self.spec.mean:
            x_NLD = torch.cat([x_NLD.mean(dim=1, keepdim=True), x_NLD], dim=1)
        grid = (below.grid[0] * times, below.grid[1] * times)
        return Features(x_NLD=x_NLD, grid=grid, prefix=int(self.spec.mean))
