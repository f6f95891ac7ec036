"""The connector seam: a tree whose leaves take encoder features and whose root has LM width.

Legend: N views, L tokens of a view, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, SerializeAsAny
from torch import nn

from retinue.core.errors import ConfigError
from retinue.core.spec import Spec
from retinue.model.connectors import CONNECTORS
from retinue.model.encoders.base import EncoderShape
from retinue.types import Features, TokenShape, Visual

EncoderFeatures = Mapping[tuple[str, int], Features]
"""What encoders give to a connector: (encoder name, layer) -> Features."""


class ConnectorSpec(Spec):
    """A node of the tree. `children` are its operands; the rest is pure arithmetic on shapes."""

    kind: str

    @property
    def children(self) -> Sequence[ConnectorSpec]:
        return ()

    @abstractmethod
    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        """Tokens of one view. Raises ConfigError for a budget that the tree cannot meet."""

    @abstractmethod
    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        """Width of the node's output."""

    @property
    def elastic(self) -> bool:
        """Whether the output's length follows the budget, so `reduce` does more than cut."""
        return False

    def budgets(self, shapes: Mapping[str, EncoderShape]) -> list[int]:
        """Budgets that make sense here, ascending: those trained with, else all that can be met."""
        return [self.num_tokens(shapes, None).length]

    def takes(self) -> set[tuple[str, int]]:
        """(encoder, layer) pairs that the leaves below read."""
        return {pair for child in self.children for pair in child.takes()}


class Connector(nn.Module):
    """Base of all nodes. `forward` = `encode`, then `reduce`.

    encode runs once per view and may be cached; reduce is cheap and knows each item's budget.
    """

    Spec: ClassVar[type[ConnectorSpec]]

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def encode(self, features: EncoderFeatures) -> Features:
        """(N, L, D) of all views at full length."""

    def reduce(
        self, features: Features, num_views: Sequence[int], budgets: Sequence[int | None]
    ) -> list[Features]:
        """One Features per item, at its budget. Here: no reduction, budgets are refused."""
        wrong = next((budget for budget in budgets if budget is not None), None)
        if wrong is not None and wrong != features.x_NLD.shape[1]:
            raise ConfigError(
                f"a budget of {wrong} visual tokens was asked for",
                rule=f"connector {self.spec.kind!r} always gives {features.x_NLD.shape[1]} a view",
                fix="drop the budget, or wrap the connector in kind: elastic",
            )
        return split_items(features, num_views)

    def forward(
        self, features: EncoderFeatures, num_views: Sequence[int], budgets: Sequence[int | None]
    ) -> list[Features]:
        return self.reduce(self.encode(features), num_views, budgets)


def split_items(features: Features, num_views: Sequence[int]) -> list[Features]:
    """Cut (N, L, D) into one Features per item, item i having num_views[i] views."""
    parts = features.x_NLD.split(list(num_views))
    return [Features(x_NLD=part, grid=features.grid, prefix=features.prefix) for part in parts]


def reduce_items(
    connector: Connector, features: Features, *, visual: Visual, budgets: Sequence[int | None]
) -> list[Features]:
    """`connector.reduce` for every item, also where items share pictures (`Visual.shown`)."""
    if visual.shown is None:
        return connector.reduce(features, visual.num_views, budgets)
    views = {
        picture: grid.num_views for picture, grid in zip(visual.shown, visual.grids, strict=True)
    }
    counts = [views[picture] for picture in range(len(views))]
    parts = features.x_NLD.split(counts)
    found: list[Features] = []
    at = 0
    while at < len(visual.shown):
        # as many items at once as show different pictures in order: all of one budget, say
        end = at + 1
        while end < len(visual.shown) and visual.shown[end] > visual.shown[end - 1]:
            end += 1
        pictures = visual.shown[at:end]
        some = features
        if len(pictures) < len(counts):
            some = replace(features, x_NLD=torch.cat([parts[picture] for picture in pictures]))
        found += connector.reduce(some, [counts[p] for p in pictures], budgets[at:end])
        at = end
    return found


def build(spec: ConnectorSpec, shapes: Mapping[str, EncoderShape], lm_width: int) -> Connector:
    """The module of a spec node, by its kind."""
    return CONNECTORS.get(spec.kind)(spec, shapes, lm_width)


ConnectorField = Annotated[SerializeAsAny[ConnectorSpec], BeforeValidator(CONNECTORS.spec_of)]
