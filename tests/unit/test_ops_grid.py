"""Tokens as pictures: small cases by hand."""

from __future__ import annotations

import pytest
import torch

from retinue.ops.grid import (
    interpolate_positions,
    pixel_shuffle,
    plane_to_tiles,
    pool2d,
    tiles_to_plane,
    unpad_slices,
)


@pytest.mark.parametrize("side", [1, 2, 4, 12])
def test_pool_is_the_mean_of_blocks(side: int) -> None:
    x = torch.randn(3, 144, 5)
    expected = torch.nn.functional.avg_pool2d(x.transpose(1, 2).unflatten(2, (12, 12)), 12 // side)
    out = pool2d(x, grid=(12, 12), out=(side, side))
    torch.testing.assert_close(out, expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_pool_of_sides_that_do_not_divide() -> None:
    x = torch.arange(5.0).reshape(1, 5, 1)
    assert pool2d(x, grid=(1, 5), out=(1, 2)).flatten().tolist() == [1.0, 3.0]


def test_pixel_shuffle_keeps_reading_order_inside_a_block() -> None:
    x = torch.arange(24).reshape(1, 24, 1)
    out = pixel_shuffle(x, grid=(4, 6), factor=2)
    assert out.shape == (1, 6, 4)
    assert out[0, 0].tolist() == [0, 1, 6, 7]
    assert out[0, 5].tolist() == [16, 17, 22, 23]


def test_tiles_and_plane_are_inverse() -> None:
    plane = torch.randn(4, 6, 3)
    tiles = plane_to_tiles(plane, tiles=(2, 3))
    assert tiles.shape == (6, 4, 3)
    torch.testing.assert_close(tiles[1], plane[:2, 2:4].reshape(4, 3))
    torch.testing.assert_close(tiles_to_plane(tiles, tiles=(2, 3), grid=(2, 2)), plane)


@pytest.mark.parametrize(
    ("size", "plane", "kept"),
    [
        ((100, 100), (24, 24), (24, 24)),
        ((50, 100), (24, 24), (12, 24)),
        ((100, 50), (24, 24), (24, 12)),
        ((53, 100), (24, 24), (12, 24)),
        # 13 lines filled, the border of 5.5 floored: one padding line stays
        ((55, 100), (24, 24), (14, 24)),
        # nothing left of an extreme shape
        ((17, 5000), (24, 24), (0, 24)),
        ((99, 100), (1, 2), (1, 2)),
        ((99, 100), (2, 1), (0, 1)),
    ],
)
def test_unpad(size: tuple[int, int], plane: tuple[int, int], kept: tuple[int, int]) -> None:
    rows, cols = unpad_slices(size, rows=plane[0], cols=plane[1])
    assert (rows.stop - rows.start, cols.stop - cols.start) == kept


def test_interpolated_positions() -> None:
    table = torch.randn(1 + 9, 4)
    same = interpolate_positions(table, grid=(3, 3), to=(3, 3), prefix=1)
    assert same is table
    out = interpolate_positions(table.bfloat16(), grid=(3, 3), to=(6, 6), prefix=1)
    assert out.shape == (37, 4)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[:1], table[:1].bfloat16())
    flat = interpolate_positions(torch.ones(4, 2), grid=(2, 2), to=(3, 5))
    torch.testing.assert_close(flat, torch.ones(15, 2))
