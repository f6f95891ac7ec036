"""All views of an item, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from retinue.model.layouts.base import Layout, LayoutSpec
from retinue.types import Features, Grid, TokenShape, VisualTokens


class PlainSpec(LayoutSpec):
    kind: Literal["plain"] = "plain"

    def num_tokens(self, grid: Grid, per_view: TokenShape) -> int:
        return grid.num_views * per_view.length


class Plain(Layout):
    """Views in order, nothing between them (LLaVA's `flat`, arXiv 2304.08485)."""

    Spec: ClassVar[type[LayoutSpec]] = PlainSpec

    def forward(self, views: Sequence[Features], grids: Sequence[Grid]) -> VisualTokens:
        runs = [view.x_NLD.flatten(0, 1) for view in views]
        return VisualTokens(x_TD=torch.cat(runs), lengths=[len(run) for run in runs])
