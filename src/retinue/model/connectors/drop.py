"""The first tokens of every view left out, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from retinue.model.connectors.base import EncoderFeatures
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class DropSpec(UnarySpec):
    """`first`: how many tokens to leave out."""

    kind: Literal["drop"] = "drop"
    first: int = Field(default=1, ge=1)

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        return TokenShape(length=self.of.num_tokens(shapes, budget).length - self.first, grid=None)


class Drop(Unary):
    """Leaves out the first tokens of a view, also where they are patches.

    Source: mm_simple of https://github.com/Cerebras/modelzoo, whose mode `patch` does so with
    encoders without class token.
    """

    Spec: ClassVar[type[UnarySpec]] = DropSpec
    spec: DropSpec

    def encode(self, features: EncoderFeatures) -> Features:
        below: Features = self.of.encode(features)
        return Features(x_NLD=below.x_NLD[:, self.spec.first :], grid=None)
