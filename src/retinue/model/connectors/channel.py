"""Operands side by side in width: several encoders looking at the same place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.parts import Parts, PartsSpec
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class ChannelSpec(PartsSpec):
    kind: Literal["channel"] = "channel"

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        below = self.shapes_below(shapes)
        if any((s.grid, s.prefix) != (below[0].grid, below[0].prefix) for s in below):
            seen = ", ".join(f"{s.prefix}+{s.grid}" for s in below)
            raise ConfigError(
                f"operands have the shapes {seen}",
                where="model.connector",
                rule="kind 'channel' joins tokens of the same place: prefix and grid must agree",
                fix="pool or take the operands to one grid, or join them with kind: sequence",
            )
        if below[0].grid is None:
            raise ConfigError(
                "operands without a grid",
                where="model.connector",
                rule="kind 'channel' needs tokens that have a place on the picture",
            )
        self.refuse(budget, below[0].length)
        return below[0]

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return sum(part.width(shapes, lm_width) for part in self.parts)


class Channel(Parts):
    """Concatenation in width of features on one grid (SPHINX, arXiv 2311.07575)."""

    Spec: ClassVar[type[ConnectorSpec]] = ChannelSpec

    def encode(self, features: EncoderFeatures) -> Features:
        below: list[Features] = [part.encode(features) for part in self.parts]  # type: ignore[operator]
        joined = torch.cat([part.x_NLD for part in below], dim=-1)
        return Features(x_NLD=joined, grid=below[0].grid, prefix=below[0].prefix)
