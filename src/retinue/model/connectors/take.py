"""Leaf of the tree: one layer of one encoder, with or without its prefix tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import Connector, ConnectorSpec, EncoderFeatures
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class TakeSpec(ConnectorSpec):
    """`layer` counts as in `hidden_states` (-2: output of the last but one block)."""

    kind: Literal["take"] = "take"
    encoder: str
    layer: int = -2
    prefix: bool = False

    def shape(self, shapes: Mapping[str, EncoderShape]) -> EncoderShape:
        if self.encoder not in shapes:
            raise ConfigError(
                f"unknown encoder {self.encoder!r}",
                where="model.connector",
                rule=f"encoders of this model: {', '.join(sorted(shapes)) or 'none'}",
            )
        return shapes[self.encoder]

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        shape = self.shape(shapes)
        prefix = shape.prefix if self.prefix else 0
        length = prefix + shape.grid[0] * shape.grid[1]
        if budget is not None and budget != length:
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                rule=f"this connector always gives {length}",
                fix="drop the budget, or wrap the connector in kind: elastic",
            )
        return TokenShape(length=length, grid=shape.grid, prefix=prefix)

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.shape(shapes).width

    def takes(self) -> set[tuple[str, int]]:
        return {(self.encoder, self.layer)}


class Take(Connector):
    """One encoder layer; `prefix: false` drops class and register tokens (LLaVA `patch`).

    Source: LLaVA's `mm_vision_select_layer` and `mm_vision_select_feature` (arXiv 2304.08485).
    """

    Spec: ClassVar[type[ConnectorSpec]] = TakeSpec
    spec: TakeSpec

    def encode(self, features: EncoderFeatures) -> Features:
        found = features[self.spec.encoder, self.spec.layer]
        if self.spec.prefix or not found.prefix:
            return found
        return Features(x_NLD=found.x_NLD[:, found.prefix :], grid=found.grid)
