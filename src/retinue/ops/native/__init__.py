"""Operations in C++ over torch's own products; the sources stand in this folder."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from retinue.core import compiled


def library(name: str) -> ctypes.CDLL | None:
    """`<name>.cpp` linked to torch's library, or None where it cannot be had."""
    return compiled.library(
        __package__, name, folder=Path(torch.__file__).parent / "lib", links=["torch_cpu"]
    )
