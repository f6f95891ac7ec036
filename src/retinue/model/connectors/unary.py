"""What nodes with one operand share: shapes and budgets pass through.

Legend: N views, L tokens of a view, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retinue.model.connectors.base import (
    Connector,
    ConnectorField,
    ConnectorSpec,
    EncoderFeatures,
    build,
)
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape


class UnarySpec(ConnectorSpec):
    of: ConnectorField

    @property
    def children(self) -> Sequence[ConnectorSpec]:
        return (self.of,)

    @property
    def elastic(self) -> bool:
        return self.of.elastic

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        return self.of.num_tokens(shapes, budget)

    def budgets(self, shapes: Mapping[str, EncoderShape]) -> list[int]:
        return self.of.budgets(shapes) if self.elastic else super().budgets(shapes)

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.of.width(shapes, lm_width)


class Unary(Connector):
    """Base of nodes with one operand, kept as child `of`; leaves say what they do to each token.

    Tokens are mapped in `encode`, once per view; over an elastic operand in `reduce`, so that only
    the tokens of the budget are.
    """

    spec: UnarySpec

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        self.of = build(spec.of, shapes, lm_width)

    def map(self, x_NLD: Tensor) -> Tensor:
        """Every token by itself, (N, L, D) -> (N, L, width). Here: unchanged."""
        return x_NLD

    def encode(self, features: EncoderFeatures) -> Features:
        below = self.of.encode(features)
        return below if self.spec.of.elastic else replace(below, x_NLD=self.map(below.x_NLD))

    def reduce(
        self, features: Features, num_views: Sequence[int], budgets: Sequence[int | None]
    ) -> list[Features]:
        items = self.of.reduce(features, num_views, budgets)
        if not self.spec.of.elastic:
            return items
        for length in {item.x_NLD.shape[1] for item in items}:
            chosen = [i for i, item in enumerate(items) if item.x_NLD.shape[1] == length]
            x_NLD = self.map(torch.cat([items[i].x_NLD for i in chosen]))
            parts = x_NLD.split([num_views[i] for i in chosen])
            for i, part in zip(chosen, parts, strict=True):
                items[i] = replace(items[i], x_NLD=part)
        return items
