"""Which rows an epoch of ModelZoo's data processor visits, in which order and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from retinue.core.errors import ConfigError


def subset(count: int, ranges: str | None) -> list[int]:
    """Rows of `"0.0-0.25,0.5-1.0"`; None = all. Raises ConfigError for ranges that do not rise."""
    if ranges is None:
        return list(range(count))
    found: list[int] = []
    last = 0.0
    for part in ranges.split(","):
        try:
            start, stop = (float(one) for one in part.split("-"))
        except ValueError:
            raise ConfigError(
                f"data_subset {ranges!r}", rule="start-stop, fractions, with commas between"
            ) from None
        if not last <= start < stop <= 1:
            raise ConfigError(f"data_subset {ranges!r}", rule="ranges rise within 0 and 1")
        found += range(int(count * start), int(count * stop))
        last = stop
    return found


def mixture(
    counts: Sequence[int], weights: Sequence[float], *, shuffle: bool, seed: int
) -> list[tuple[int, int]]:
    """(source, row) of an epoch over weighted sources.

    An epoch is as long as the source needs that is visited once in it at the slowest; sources of
    5 % or less do not decide. In order, sources are interleaved by a fixed draw.
    """
    shares = [weight / sum(weights) for weight in weights]
    pairs = list(zip(counts, shares, strict=True))
    total = max((count / share for count, share in pairs if share > 0.05), default=0)
    takes = [int(total * share) for share in shares]
    rows = [[i % count for i in range(take)] for count, take in zip(counts, takes, strict=True)]
    order = np.repeat(np.arange(len(counts)), takes)
    if not shuffle:
        np.random.default_rng(seed).shuffle(order)
    left = [iter(one) for one in rows]
    return [(int(source), next(left[source])) for source in order]


def epoch_order(
    count: int, *, shuffle: bool, seed: int, epoch: int, num_samples: int | None = None
) -> list[int]:
    """Rows of one epoch. num_samples: fewer, or more than there are, by whole copies and a part."""
    wanted = count if num_samples is None else num_samples
    if not shuffle:
        return [i % count for i in range(wanted)]
    generator = torch.Generator().manual_seed(seed + epoch)
    if wanted <= count:
        found: list[int] = torch.randperm(count, generator=generator).tolist()[:wanted]
        return found
    copies = list(range(count)) * (wanted // count)
    copies += torch.randperm(count, generator=generator).tolist()[: wanted - len(copies)]
    again = torch.randperm(wanted, generator=generator).tolist()
    return [copies[i] for i in again]


class Batches:
    """Batches of row numbers, pass after pass.

    drop_last: what does not fill a batch comes first in the next pass; else it is a batch.
    """

    def __init__(
        self,
        count: int,
        *,
        batch: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = True,
        num_samples: int | None = None,
    ) -> None:
        self.count, self.batch, self.shuffle, self.seed = count, batch, shuffle, seed
        self.drop_last, self.num_samples = drop_last, num_samples
        self.epoch = 0
        self._kept: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the next pass."""
        order = epoch_order(
            self.count,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=self.epoch,
            num_samples=self.num_samples,
        )
        order = [*self._kept, *order]
        self.epoch += 1
        whole = len(order) // self.batch * self.batch
        self._kept = order[whole:] if self.drop_last else []
        for at in range(0, whole, self.batch):
            yield order[at : at + self.batch]
        if not self.drop_last and whole < len(order):
            yield order[whole:]
