"""Tiles put back onto one plane, rows ended by a learned vector.

Legend: V views, L tokens of a view, R C rows and columns of tokens, D language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from retinue.core.errors import ConfigError
from retinue.model.layouts.base import Layout, LayoutSpec
from retinue.ops.grid import tiles_to_plane, unpad_slices
from retinue.types import Features, Grid, TokenShape, VisualTokens


class NewlineSpec(LayoutSpec):
    """`unpad`: drop the rows or columns that only show padding; `newline`: end rows with a vector.

    Both on is LLaVA's `spatial_unpad`, both off its `spatial`. `snap`: round the filled side as
    transformers' LlavaNext does (see `unpad_slices`).
    """

    kind: Literal["newline"] = "newline"
    unpad: bool = True
    newline: bool = True
    snap: bool = False

    def num_tokens(self, grid: Grid, per_view: TokenShape) -> int:
        end = int(self.newline)
        if grid.num_views == 1:
            return per_view.length + end
        side_rows, side_cols = self.side(per_view.grid, per_view.prefix)
        rows, cols = grid.rows * side_rows, grid.cols * side_cols
        if self.unpad:
            row_slice, col_slice = unpad_slices(grid.size, rows=rows, cols=cols, snap=self.snap)
            rows, cols = len(range(rows)[row_slice]), len(range(cols)[col_slice])
        return int(grid.overview) * per_view.length + rows * (cols + end)

    def side(self, grid: tuple[int, int] | None, prefix: int) -> tuple[int, int]:
        """Rows and columns of one view's tokens; refuses tokens without a bare grid."""
        if grid is None or prefix:
            raise ConfigError(
                "tokens without a bare grid under layout 'newline'",
                where="model.layout",
                rule="tiles are put back on a plane, so each token needs a place",
                fix="use layout plain, or take the encoder with prefix: false",
            )
        return grid


class Newline(Layout):
    """Overview, then the plane of tiles, unpadded, each row ended (LLaVA-NeXT `spatial_unpad`).

    Source: LLaVA-NeXT (Liu et al. 2024, its blog post and haotian-liu/LLaVA's anyres features).
    """

    Spec: ClassVar[type[LayoutSpec]] = NewlineSpec
    spec: NewlineSpec

    def __init__(self, spec: Any, lm_width: int) -> None:
        super().__init__(spec, lm_width)
        if spec.newline:
            self.newline = nn.Parameter(torch.empty(lm_width))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation 1 / sqrt(D), as the original creates it."""
        if self.spec.newline:
            nn.init.normal_(self.newline, std=len(self.newline) ** -0.5)

    def forward(self, views: Sequence[Features], grids: Sequence[Grid]) -> VisualTokens:
        runs = [self.run(view, grid) for view, grid in zip(views, grids, strict=True)]
        return VisualTokens(x_TD=torch.cat(runs), lengths=[len(run) for run in runs])

    def run(self, view: Features, grid: Grid) -> Tensor:
        """Tokens of one item, (T, D)."""
        x_VLD = view.x_NLD
        if grid.num_views == 1:
            return self.ended(x_VLD)[0]
        side = self.spec.side(view.grid, view.prefix)
        tiles_VLD = x_VLD[int(grid.overview) :]
        plane_RCD = tiles_to_plane(tiles_VLD, tiles=(grid.rows, grid.cols), grid=side)
        if self.spec.unpad:
            rows, cols = plane_RCD.shape[:2]
            slices = unpad_slices(grid.size, rows=rows, cols=cols, snap=self.spec.snap)
            plane_RCD = plane_RCD[slices]
        body = self.ended(plane_RCD).flatten(0, 1)
        return torch.cat([x_VLD[0], body]) if grid.overview else body

    def ended(self, rows_RCD: Tensor) -> Tensor:
        """(R, C, D) with the newline vector as one more column."""
        if not self.spec.newline:
            return rows_RCD
        column = self.newline.to(rows_RCD.dtype).expand(rows_RCD.shape[0], 1, -1)
        return torch.cat([rows_RCD, column], dim=1)
