"""Every view between two learned vectors.

Legend: V views, L tokens of a view, T tokens of the run, D language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from retinue.model.layouts.base import Layout, LayoutSpec
from retinue.ops.grid import empty_tiles
from retinue.types import Features, Grid, TokenShape, VisualTokens


class BracketSpec(LayoutSpec):
    """`skip`: a tile that shows only padding becomes one learned vector (arXiv 2402.05935, 3.1).

    It is for policies that pad the picture to the shape of all tiles, in the middle.
    """

    kind: Literal["bracket"] = "bracket"
    skip: bool = False

    def num_tokens(self, grid: Grid, per_view: TokenShape) -> int:
        skipped = sum(self.skipped(grid))
        return (grid.num_views - skipped) * (per_view.length + 2) + skipped

    def skipped(self, grid: Grid) -> list[bool]:
        """For each view, overview first, whether one vector stands for it."""
        tiles = [False] * (grid.rows * grid.cols)
        if self.skip and grid.num_views > 1:
            tiles = empty_tiles(grid.size, rows=grid.rows, cols=grid.cols)
        return [False] * int(grid.overview) + tiles


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
        whole_VLD = torch.cat([start_V1D, x_VLD, end_V1D], dim=1)
        skipped = self.spec.skipped(grid)
        if not any(skipped):
            return whole_VLD.flatten(0, 1)
        void_1D = self.void.to(x_VLD.dtype)[None]
        return torch.cat(
            [void_1D if skip else view for skip, view in zip(skipped, whole_VLD, strict=True)]
        )
