"""Operands one after the other in the token sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures
from retinue.model.connectors.parts import Parts, PartsSpec
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class SequenceSpec(PartsSpec):
    kind: Literal["sequence"] = "sequence"

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        below = self.shapes_below(shapes)
        length = sum(shape.length for shape in below)
        self.refuse(budget, length)
        if len(below) == 1:
            return below[0]
        return TokenShape(length=length, grid=None)

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        widths = [part.width(shapes, lm_width) for part in self.parts]
        if len(set(widths)) > 1:
            raise ConfigError(
                f"operands have the widths {widths}",
                where="model.connector",
                rule="kind 'sequence' joins tokens of one width",
                fix="put kind: linear or mlp around each operand",
            )
        return widths[0]


class Sequence(Parts):
    """Concatenation in length (SPHINX's Q-Former beside its mixture, arXiv 2311.07575)."""

    Spec: ClassVar[type[ConnectorSpec]] = SequenceSpec

    def encode(self, features: EncoderFeatures) -> Features:
        below: list[Features] = [part.encode(features) for part in self.parts]  # type: ignore[operator]
        if len(below) == 1:
            return below[0]
        return Features(x_NLD=torch.cat([part.x_NLD for part in below], dim=1), grid=None)
