"""What nodes with one operand share: shapes and budgets pass through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retinue.model.connectors.base import Connector, ConnectorField, ConnectorSpec, build
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class UnarySpec(ConnectorSpec):
    of: ConnectorField

    @property
    def children(self) -> Sequence[ConnectorSpec]:
        return (self.of,)

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        return self.of.num_tokens(shapes, budget)

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.of.width(shapes, lm_width)


class Unary(Connector):
    """Base of nodes with one operand, kept as child `of`; reduction is the operand's business."""

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        self.of = build(spec.of, shapes, lm_width)

    def reduce(
        self, features: Features, num_views: Sequence[int], budgets: Sequence[int | None]
    ) -> list[Features]:
        return self.of.reduce(features, num_views, budgets)
