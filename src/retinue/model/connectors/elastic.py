"""Nested average pooling on the token grid: one model that answers with few or many visual tokens.

Legend: N views, L tokens of a view, P prefix tokens, G tokens of the grid, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import gcd, isqrt
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from retinue.core.errors import ConfigError
from retinue.model.connectors.base import ConnectorSpec, EncoderFeatures, split_items
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape
from retinue.ops.grid import pool2d
from retinue.types import Features, TokenShape


class ElasticSpec(UnarySpec):
    """`scales`: tokens per view that the model is trained with, empty = all that the grid can meet.

    rounding: what becomes of a budget that no square of tokens divides the grid into. `exact`
    refuses it and names the nearest; `original` takes the square that M3's code takes (budget 100
    of 576 gives 144, 20 gives 16) and drops the rows and columns left over. Prefix tokens stay in
    front, unpooled, and count as part of the budget.
    """

    kind: Literal["elastic"] = "elastic"
    scales: list[int] = Field(default_factory=list)
    rounding: Literal["exact", "original"] = "exact"

    @property
    def elastic(self) -> bool:
        return True

    def num_tokens(self, shapes: Mapping[str, EncoderShape], budget: int | None) -> TokenShape:
        full = self.full(shapes)
        for scale in self.scales:
            self.side(full, scale, where="model.connector.scales")
        return pooled_shape(full, self.side(full, budget))

    def budgets(self, shapes: Mapping[str, EncoderShape]) -> list[int]:
        return sorted(set(self.scales or reachable(self.full(shapes))))

    def full(self, shapes: Mapping[str, EncoderShape]) -> TokenShape:
        """The operand's tokens; refuses those without a grid."""
        below = self.of.num_tokens(shapes, None)
        if below.grid is None:
            raise ConfigError(
                f"kind 'elastic' over {below.length} tokens of {self.of.kind!r} without a grid",
                where="model.connector",
                rule="pooling joins neighbours, so the operand's shape must be rows x columns; "
                f"this one is {below.length} x 1 without places",
                fix="wrap an operand that keeps the encoder's grid",
            )
        return below

    def side(self, full: TokenShape, budget: int | None, *, where: str | None = None) -> int:
        """Side of the square pooled to one token. Raises ConfigError where no side fits."""
        if budget is None or budget == full.length:
            return 1
        found = side_of(full, budget, exact=self.rounding == "exact")
        if found is None:
            valid = reachable(full)
            nearest = min(valid, key=lambda known: (abs(known - budget), -known))
            trained = f" (trained with {self.scales})" if self.scales else ""
            raise ConfigError(
                f"a budget of {budget} visual tokens per view was asked for",
                where=where,
                rule=f"a view of {full.length} tokens pools to one of {valid}{trained}",
                fix=f"the nearest is {nearest}",
            )
        return found


def side_of(full: TokenShape, budget: int, *, exact: bool) -> int | None:
    """The square's side by the original's rule; None where it is none, or leaves a remainder."""
    assert full.grid is not None
    rows, cols = full.grid
    wanted = budget - full.prefix
    if not 1 <= wanted <= rows * cols:
        return None
    side = isqrt(rows * cols // wanted)
    if exact and (rows % side or cols % side or rows * cols != wanted * side * side):
        return None
    return side if side <= min(rows, cols) else None


def pooled_shape(full: TokenShape, side: int) -> TokenShape:
    """Tokens of a view after pooling squares of `side`, the prefix untouched."""
    if side == 1:
        return full
    assert full.grid is not None
    rows, cols = full.grid[0] // side, full.grid[1] // side
    return TokenShape(length=full.prefix + rows * cols, grid=(rows, cols), prefix=full.prefix)


def reachable(full: TokenShape) -> list[int]:
    """Budgets that square blocks meet without remainder, ascending."""
    assert full.grid is not None
    rows, cols = full.grid
    common = gcd(rows, cols)
    sides = [side for side in range(common, 0, -1) if common % side == 0]
    return [full.prefix + (rows // side) * (cols // side) for side in sides]


class Elastic(Unary):
    """Average pooling to each item's budget, nothing learned (M3, arXiv 2405.17430).

    Around the projector, projected tokens are pooled, as the original does; inside one, features
    are pooled and the projector sees the few. Full-length features come from `encode`, so one
    pass of the encoders serves every budget.
    """

    Spec: ClassVar[type[ConnectorSpec]] = ElasticSpec
    spec: ElasticSpec

    def __init__(self, spec: Any, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        spec.num_tokens(shapes, None)

    def encode(self, features: EncoderFeatures) -> Features:
        return self.of.encode(features)

    def reduce(
        self, features: Features, num_views: Sequence[int], budgets: Sequence[int | None]
    ) -> list[Features]:
        items = self.of.reduce(features, num_views, [None] * len(num_views))
        full = TokenShape(
            length=features.x_NLD.shape[1], grid=features.grid, prefix=features.prefix
        )
        sides = [self.spec.side(full, budget) for budget in budgets]
        for side in set(sides) - {1}:
            chosen = [number for number, own in enumerate(sides) if own == side]
            group = features
            if len(chosen) < len(items):
                x_NLD = torch.cat([items[number].x_NLD for number in chosen])
                group = replace(features, x_NLD=x_NLD)
            parts = split_items(pool_squares(group, side), [num_views[i] for i in chosen])
            for number, part in zip(chosen, parts, strict=True):
                items[number] = part
        return items


def pool_squares(features: Features, side: int) -> Features:
    """Every square of side x side tokens as its mean; left-over rows and columns are dropped."""
    assert features.grid is not None
    x_NLD, P, grid = features.x_NLD, features.prefix, features.grid
    out = (grid[0] // side, grid[1] // side)
    kept = (out[0] * side, out[1] * side)
    x_NGD = x_NLD[:, P:]
    if kept != grid:
        x_NGD = x_NGD.unflatten(1, grid)[:, : kept[0], : kept[1]].flatten(1, 2)
    x_NGD = pool2d(x_NGD, grid=kept, out=out)
    if P:
        x_NGD = torch.cat([x_NLD[:, :P], x_NGD], dim=1)
    return Features(x_NLD=x_NGD, grid=out, prefix=P)
