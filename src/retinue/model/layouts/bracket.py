"""Every view between two learned vectors.

Legend: V views, L tokens of a view, T tokens of the run, D language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn

from retinue.core.errors import ConfigError
from retinue.model.layouts.base import Layout, LayoutSpec
from retinue.ops.grid import empty_tiles
from retinue.types import Features, Grid, TokenShape, VisualTokens

Cuts = list[tuple[int, int]]
"""Stretches of a view's tokens: (first, behind the last) of each."""


class BracketSpec(LayoutSpec):
    """`skip`: a tile that shows only padding becomes one learned vector (arXiv 2402.05935, 3.1).

    It is for policies that pad the picture to the shape of all tiles, in the middle. whole, tile:
    which of a view's tokens the overview and a tile show, where that is not all of them (for a
    connector that gives several resolutions); a view without tiles is an overview.
    """

    kind: Literal["bracket"] = "bracket"
    skip: bool = False
    whole: Cuts | None = None
    tile: Cuts | None = None

    @field_validator("whole", "tile")
    @classmethod
    def _in_order(cls, cuts: Cuts | None) -> Cuts | None:
        if cuts is not None and not (cuts and all(0 <= a < b for a, b in cuts)):
            raise ValueError("stretches of tokens are [first, behind the last], at least one")
        return cuts

    def num_tokens(self, grid: Grid, per_view: TokenShape) -> int:
        for cuts in (self.whole, self.tile):
            if cuts is not None and max(end for _, end in cuts) > per_view.length:
                raise ConfigError(
                    f"tokens {cuts} of a view",
                    where="model.layout",
                    rule=f"the connector gives {per_view.length} a view",
                )
        each = [length(self.cuts(index, grid), per_view.length) + 2 for index in views_of(grid)]
        skips = self.skipped(grid)
        return sum(1 if skip else own for skip, own in zip(skips, each, strict=True))

    def cuts(self, index: int, grid: Grid) -> Cuts | None:
        """What view `index` of an item shows; None: everything."""
        return self.whole if grid.num_views == 1 or (grid.overview and not index) else self.tile

    def skipped(self, grid: Grid) -> list[bool]:
        """For each view, overview first, whether one vector stands for it."""
        tiles = [False] * (grid.rows * grid.cols)
        if self.skip and grid.num_views > 1:
            tiles = empty_tiles(grid.size, rows=grid.rows, cols=grid.cols)
        return [False] * int(grid.overview) + tiles


def views_of(grid: Grid) -> range:
    """Indices of the views, the overview first."""
    return range(grid.num_views)


def length(cuts: Cuts | None, whole: int) -> int:
    """Tokens of a view of `whole` that shows these stretches."""
    return whole if cuts is None else sum(end - begin for begin, end in cuts)


class Bracket(Layout):
    """Start, tokens, end for every view in order, the same two vectors for all (SPHINX).

    Source: SPHINX (Lin et al. 2023, arXiv 2311.07575); `skip` is of SPHINX-X (arXiv 2402.05935).
    """

    Spec: ClassVar[type[LayoutSpec]] = BracketSpec
    spec: BracketSpec

    def __init__(self, spec: Any, lm_width: int) -> None:
        super().__init__(spec, lm_width)
        self.start = nn.Parameter(torch.empty(lm_width))
        self.end = nn.Parameter(torch.empty(lm_width))
        if spec.skip:
            self.void = nn.Parameter(torch.empty(lm_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in [0, 1), as the original draws them; the vector of empty tiles too."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter)

    def forward(self, views: Sequence[Features], grids: Sequence[Grid]) -> VisualTokens:
        runs = [self.run(view.x_NLD, grid) for view, grid in zip(views, grids, strict=True)]
        return VisualTokens(x_TD=torch.cat(runs), lengths=[len(run) for run in runs])

    def run(self, x_VLD: Tensor, grid: Grid) -> Tensor:
        """Tokens of one item, (T, D)."""
        start_V1D, end_V1D = (
            vector.to(x_VLD.dtype).expand(len(x_VLD), 1, -1) for vector in (self.start, self.end)
        )
        skipped = self.spec.skipped(grid)
        if not any(skipped) and self.spec.whole is None and self.spec.tile is None:
            return torch.cat([start_V1D, x_VLD, end_V1D], dim=1).flatten(0, 1)
        parts: list[Tensor] = []
        for index, skip in zip(views_of(grid), skipped, strict=True):
            if skip:
                parts.append(self.void.to(x_VLD.dtype)[None])
                continue
            cuts = self.spec.cuts(index, grid)
            shown = [(0, x_VLD.shape[1])] if cuts is None else cuts
            own = [x_VLD[index, begin:end] for begin, end in shown]
            parts += [start_V1D[index], *own, end_V1D[index]]
        return torch.cat(parts)
