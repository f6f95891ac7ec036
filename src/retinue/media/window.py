"""A window of a resampled picture, compiled: what lies outside of it is never computed.

Legend: C H W pixels. The bits are those of torch's resampling of the whole; for pictures with
four bytes a pixel, which is how Pillow and simplejpeg's RGBX lay them out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retinue.core.compiled import library

Place = tuple[int, int, int, int]
"""(top, left, height, width) in the resampled picture."""
TAPS = 4
"""Weights come in fours."""
MOST_BITS = 22


class _Taps(ctypes.Structure):
    _fields_ = [
        ("first", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("most", ctypes.c_int64),
        ("bits", ctypes.c_int64),
    ]


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5, as Pillow's BICUBIC."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x < 1, near, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))


def linear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


KERNELS: dict[str, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "bicubic": (2.0, cubic),
    "bilinear": (1.0, linear),
}
"""Interpolation -> (half its width, its values)."""


def serves(pixels_CHW: Tensor, interpolation: str) -> bool:
    """Whether `resize_window` can take this picture on this machine."""
    width = pixels_CHW.shape[2]
    return (
        interpolation in KERNELS
        and pixels_CHW.stride() == (1, 4 * width, 4)
        and compiled() is not None
    )


def resize_window(
    pixels_CHW: Tensor, size: tuple[int, int], *, place: Place, interpolation: str
) -> Tensor:
    """uint8 (3, height, width): `place` of the picture resampled to `size`. Needs `serves`."""
    function = compiled()
    assert function is not None
    _, rows, columns = pixels_CHW.shape
    top, left, height, width = place
    assert min(top, left) >= 0
    assert top + height <= size[0]
    assert left + width <= size[1]
    found = np.empty((height, width, 3), np.uint8)
    across = taps(columns, size[1], interpolation)
    down = taps(rows, size[0], interpolation)
    structs = [
        _Taps(f.ctypes.data, w.ctypes.data, w.shape[1], bits) for f, w, bits in (across, down)
    ]
    function(
        pixels_CHW.data_ptr(), rows, columns, *map(ctypes.byref, structs), *place, found.ctypes.data
    )
    return torch.from_numpy(found).permute(2, 0, 1)


@lru_cache(maxsize=256)
def taps(
    given: int, wanted: int, interpolation: str
) -> tuple[NDArray[np.int32], NDArray[np.int16], int]:
    """(first input, weights, bits) of every output place: Pillow's, as precise as 16 bits hold."""
    half, kernel = KERNELS[interpolation]
    scale = given / wanted
    wide = max(scale, 1.0)
    centre = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((centre - half * wide + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + half * wide + 0.5).astype(np.int64), given)
    most = -(-int((last - first).max()) // TAPS) * TAPS
    place = first[:, None] + np.arange(most)
    weight = kernel((place - centre[:, None] + 0.5) / wide) * (place < last[:, None])
    weight /= weight.sum(1, keepdims=True)
    bits = 0
    while bits < MOST_BITS and weight.max() * 2 ** (bits + 1) + 0.5 < 2**15:
        bits += 1
    whole = np.trunc(weight * 2**bits + np.copysign(0.5, weight)).astype(np.int16)
    return first.astype(np.int32), np.ascontiguousarray(whole), bits


@cache
def compiled() -> Callable[..., None] | None:
    """The kernel, if this machine has a compiler and the instructions it is written for."""
    found = library("retinue.media.native", "resize")
    if found is None:
        return None
    function = found.resize_window
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, number, number, pointer, pointer, *[number] * 4, pointer]
    function.restype = None
    return function
