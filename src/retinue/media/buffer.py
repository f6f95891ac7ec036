"""A PIL image's own memory as an array, without a copy, through the Arrow C data interface.

Pillow keeps RGB as four bytes a pixel and exports it as a list of fixed-size lists of four. The
struct below is the stable ABI of https://arrow.apache.org/docs/format/CDataInterface.html.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from PIL.Image import Image as PILImage

CHANNELS = 4


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """numpy keeps this object alive, this object keeps the exported memory alive."""

    def __init__(self, address: int, shape: tuple[int, ...], owner: object) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": "|u1",
            "version": 3,
        }


def shared_array(image: PILImage) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """uint8 (H, W, 4) over the memory of an RGB image; read-only by agreement.

    None where Pillow keeps the image in several pieces (beyond its block size, 16 MB).
    """
    try:
        _, capsule = image.__arrow_c_array__()
    except (ValueError, MemoryError, OSError):
        return None
    array = _ArrowArray.from_address(_pointer(capsule, b"arrow_array"))
    if array.n_children != 1 or array.offset:
        return None
    child = array.children[0].contents
    if child.n_buffers != 2 or child.length != image.width * image.height * CHANNELS:
        return None
    shape = (image.height, image.width, CHANNELS)
    return np.asarray(_Memory(child.buffers[1], shape, (image, capsule)))
