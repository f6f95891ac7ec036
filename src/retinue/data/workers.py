"""Work on samples in parallel processes: same results in the same order for any number of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

K = TypeVar("K")
R = TypeVar("R")


class _Task(Dataset[R], Generic[K, R]):
    def __init__(self, task: Callable[[K], R]) -> None:
        self.task = task

    def __getitem__(self, key: Any) -> R:
        return self.task(key)


def identity(value: R) -> R:
    return value


def usable(workers: int) -> int:
    """`workers`, but no more than the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(workers, len(affinity(0)) if affinity else os.cpu_count() or 1)


def ordered_map(
    task: Callable[[K], R], keys: Iterable[K], *, workers: int = 0, prefetch: int = 4
) -> Iterator[R]:
    """task(key) for every key, in order; `keys` may be endless and is read a little ahead.

    workers=0 runs here. Each worker uses one thread. Torch's global generator is left alone.
    """
    workers = usable(workers)
    if workers == 0:
        yield from map(task, keys)
        return
    loader = DataLoader(
        _Task(task),
        batch_size=None,
        sampler=cast(Any, keys),
        num_workers=workers,
        prefetch_factor=prefetch,
        collate_fn=identity,
        generator=torch.Generator(),
    )
    yield from loader
