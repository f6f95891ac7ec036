"""What glibc's allocator does with large buffers, see `mallopt(3)`.

While training it must not return them to the kernel after every step: temporaries above the mmap
threshold are mapped, page-faulted and unmapped each time, and without that, packed steps on a CPU
ran 1.03 to 1.13 times faster. While weights change format it must return them: small results that
lie between large temporaries keep all of the memory from being used again.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
TRIM_BYTES = 2**31 - 1
SMALL, LARGE = 2**16, 2**25
"""mmap thresholds: while loading, and the greatest that glibc itself would reach."""

_tuned = False


def tune_malloc() -> bool:
    """Set the allocator up, once at start; True if done.

    Does nothing outside Linux with glibc or when the environment says RETINUE_MALLOPT=0.
    """
    global _tuned
    mallopt = _mallopt()
    if mallopt is not None:
        _tuned = bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
    return mallopt is not None and _tuned


@contextmanager
def returning_memory() -> Iterator[None]:
    """Large buffers that are freed inside go back to the kernel; nothing after `tune_malloc`."""
    mallopt = None if _tuned else _mallopt()
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE)


def _mallopt() -> Callable[[int, int], int] | None:
    if os.environ.get("RETINUE_MALLOPT", "1") == "0" or platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
