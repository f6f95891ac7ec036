"""Tokens as pictures: pooling, tiles, borders and position tables.

Legend: N views, L tokens of a view, D width, R C rows and columns of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool2d(x_NLD: Tensor, *, grid: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """Mean over equal blocks of tokens: (N, R*C, D) on `grid` -> (N, r*c, D) on `out`.

    Sides that do not divide are split as adaptive average pooling splits them.
    """
    (R, C), (r, c) = grid, out
    assert x_NLD.shape[1] == R * C, f"{x_NLD.shape[1]} tokens on a grid {grid}"
    if (r, c) == (R, C):
        return x_NLD
    if R % r == 0 and C % c == 0:
        return x_NLD.reshape(-1, r, R // r, c, C // c, x_NLD.shape[-1]).mean((2, 4)).flatten(1, 2)
    x_NDRC = x_NLD.transpose(1, 2).unflatten(2, (R, C))
    return torch.nn.functional.adaptive_avg_pool2d(x_NDRC, out).flatten(2).transpose(1, 2)


def pixel_shuffle(x_NLD: Tensor, *, grid: tuple[int, int], factor: int) -> Tensor:
    """Blocks of factor x factor tokens become one of width factor^2 * D, row by row.

    Raises AssertionError when the grid does not divide.
    """
    R, C = grid
    assert (R % factor, C % factor) == (0, 0), f"grid {grid} by {factor}"
    x = x_NLD.unflatten(1, (R // factor, factor, C // factor, factor))
    return x.transpose(2, 3).flatten(3, 5).flatten(1, 2)


def tiles_to_plane(x_NLD: Tensor, *, tiles: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Tiles in reading order, each of `grid` tokens -> one (rows, columns, D) plane."""
    x = x_NLD.reshape(*tiles, *grid, x_NLD.shape[-1])
    return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def plane_to_tiles(x_RCD: Tensor, *, tiles: tuple[int, int]) -> Tensor:
    """The inverse of `tiles_to_plane`: (tiles, tokens of a tile, D)."""
    R, C, D = x_RCD.shape
    rows, cols = tiles
    assert (R % rows, C % cols) == (0, 0), f"plane {(R, C)} in {tiles} tiles"
    x = x_RCD.reshape(rows, R // rows, cols, C // cols, D)
    return x.transpose(1, 2).reshape(rows * cols, -1, D)


def unpad_slices(
    size: tuple[int, int], *, rows: int, cols: int, snap: bool = False
) -> tuple[slice, slice]:
    """Rows and columns of a token plane that the picture fills, after it was padded to fit.

    size: (height, width) of the original picture. Follows LLaVA-NeXT's rule with its rounding:
    the filled side is truncated, the border floored, so one padding line may stay, and extreme
    shapes may keep no line at all. snap: round to seven decimals before truncating, as
    transformers' LlavaNext does, so that a float just below a whole number is that number.
    """

    def whole(length: float) -> int:
        return int(round(length, 7)) if snap else int(length)

    height, width = size
    if width / height > cols / rows:
        filled = whole(height * (cols / width))
        border = (rows - filled) // 2
        return slice(border, rows - border), slice(0, cols)
    filled = whole(width * (rows / height))
    border = (cols - filled) // 2
    return slice(0, rows), slice(border, cols - border)


def empty_tiles(size: tuple[int, int], *, rows: int, cols: int) -> list[bool]:
    """For each tile, row by row, whether it shows only padding.

    size: (height, width) of a picture padded, in the middle, to the shape of rows x cols tiles.
    """
    height, width = size
    tall, wide = height * cols, width * rows  # the picture's sides in tiles, up to one factor
    high, across = (rows, cols * wide / tall) if tall >= wide else (rows * tall / wide, cols)

    def outside(place: int, number: int, filled: float) -> bool:
        edge = (number - filled) / 2
        return place + 1 <= edge or place >= number - edge

    return [
        outside(row, rows, high) or outside(col, cols, across)
        for row in range(rows)
        for col in range(cols)
    ]


def interpolate_positions(
    table_LD: Tensor,
    *,
    grid: tuple[int, int],
    to: tuple[int, int],
    prefix: int = 0,
    mode: str = "bicubic",
    antialias: bool = False,
) -> Tensor:
    """A learned position table resized from `grid` to `to`; the first `prefix` rows stay.

    Computed in fp32, returned in the table's dtype.
    """
    assert len(table_LD) == prefix + grid[0] * grid[1], f"{len(table_LD)} rows, grid {grid}"
    if grid == to:
        return table_LD
    x_1DRC = table_LD[prefix:].float().T.unflatten(1, grid)[None]
    x_1DRC = torch.nn.functional.interpolate(
        x_1DRC, size=to, mode=mode, align_corners=False, antialias=antialias
    )
    return torch.cat([table_LD[:prefix], x_1DRC[0].flatten(1).T.to(table_LD)])
