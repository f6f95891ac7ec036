"""LLaVA's and M3's length- and modality-grouped orders, number for number.

Signed lengths as in the originals: positive = with image, negative = text only. All of them draw
from one generator in the originals' order (they use torch's global one; seeding a generator with
the same number gives the same permutations).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from retinue.core.errors import DataError
from retinue.data.sampler import Sizes, permutation, slices

Order = Callable[[Sequence[int], int, int, torch.Generator], list[int]]
"""(lengths, batch, chunks, generator) -> permutation; batch * chunks is the global batch."""

IMAGE_WORDS = 128
"""What LLaVA adds to the word count of a sample with an image in its unsigned lengths."""


def even_chunks(indices: list[int], lengths: Sequence[int], *, chunks: int) -> list[list[int]]:
    """Deal `indices` into `chunks` lists of equal count and similar total length.

    Each index goes to the first of the shortest lists that is not full. Where the count does not
    divide, the indices are dealt in turn.
    """
    if len(indices) % chunks:
        return [indices[first::chunks] for first in range(chunks)]
    share = len(indices) // chunks
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    totals = [0.0] * chunks
    for index in indices:
        shortest = totals.index(min(totals))
        dealt[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(dealt[shortest]) == share:
            totals[shortest] = float("inf")
    return dealt


def _balanced(
    order: list[int], lengths: Sequence[int], *, batch: int, chunks: int
) -> list[list[int]]:
    """Global batches of `order`, each sorted longest first and dealt evenly to its chunks."""
    balanced = []
    for block in slices(order, batch * chunks):
        longest_first = sorted(block, key=lambda i: -lengths[i])
        dealt = even_chunks(longest_first, lengths, chunks=chunks)
        balanced.append([i for chunk in dealt for i in chunk])
    return balanced


def by_length(
    lengths: Sequence[int], batch: int, chunks: int, generator: torch.Generator
) -> list[int]:
    """LLaVA: a shuffled order whose global batches are sorted and dealt evenly to the ranks."""
    shuffled = permutation(len(lengths), generator)
    return [i for block in _balanced(shuffled, lengths, batch=batch, chunks=chunks) for i in block]


def by_window(
    lengths: Sequence[int], batch: int, chunks: int, generator: torch.Generator
) -> list[int]:
    """M3's length grouping: `by_length` inside wide sorted windows, global batches then shuffled.

    A window is 50 global batches, or fewer so that there are at least four windows. The window
    with the longest sample opens with it (the rule of transformers' length-grouped sampler); the
    final shuffle includes the short last batch, as in the original.
    """
    size = batch * chunks
    width = max(min(len(lengths) // (size * 4), 50), 1) * size
    shuffled = permutation(len(lengths), generator)
    windows = [sorted(block, key=lambda i: -lengths[i]) for block in slices(shuffled, width)]
    heads = [lengths[window[0]] for window in windows]
    longest = heads.index(max(heads))
    windows[0][0], windows[longest][0] = windows[longest][0], windows[0][0]
    ordered = [i for window in windows for i in window]
    blocks = _balanced(ordered, lengths, batch=batch, chunks=chunks)
    return [i for k in permutation(len(blocks), generator) for i in blocks[k]]


def by_rank(
    lengths: Sequence[int], batch: int, chunks: int, generator: torch.Generator
) -> list[int]:
    """M3's `varlen` mode: globally sorted windows of 8 global batches, shuffled inside."""
    size = batch * chunks
    dice = permutation(len(lengths), generator)
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    mixed = [
        i
        for window in slices(longest_first, size * 8)
        for i in sorted(window, key=lambda i: -dice[i])
    ]
    blocks = slices(mixed, size)
    return [i for k in permutation(len(blocks), generator) for i in blocks[k]]


def by_modality(
    lengths: Sequence[int],
    batch: int,
    chunks: int,
    generator: torch.Generator,
    *,
    inner: Order = by_length,
) -> list[int]:
    """LLaVA: global batches of one modality each, shuffled, the two remainders joined at the end.

    inner: order inside one modality. The last batch of each modality goes to the joined remainder
    also where it is full. Raises DataError for a length of zero, which has no modality.
    """
    if 0 in lengths:
        raise DataError(
            f"sample {list(lengths).index(0)} of the order has length 0",
            rule="grouping by modality needs a positive (image) or negative (text) length",
            fix="remove the empty sample, or use the sampler 'length'",
        )
    if len({length > 0 for length in lengths}) < 2:
        return inner(lengths, batch, chunks, generator)  # signs kept: text alone sorts upwards
    blocks: list[list[int]] = []
    tails: list[int] = []
    for sign in (1, -1):
        members = [i for i, length in enumerate(lengths) if length * sign > 0]
        order = inner([abs(lengths[i]) for i in members], batch, chunks, generator)
        *full, tail = slices([members[k] for k in order], batch * chunks)
        blocks += full
        tails += tail
    shuffled = [i for k in permutation(len(blocks), generator) for i in blocks[k]]
    return shuffled + sorted(tails)


def signed(sizes: Sizes) -> list[int]:
    """LLaVA's modality lengths: words, negative where the sample has no image."""
    return [
        words if views else -words for words, views in zip(sizes.words, sizes.views, strict=True)
    ]


def unsigned(sizes: Sizes) -> list[int]:
    """LLaVA's plain lengths: words, plus a constant for an image."""
    return [
        words + (IMAGE_WORDS if views else 0)
        for words, views in zip(sizes.words, sizes.views, strict=True)
    ]


class _Grouped:
    """A sampler around one of the orders above."""

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]:
        return self.arrange(self.lengths(sizes), micro_batch, num_micro, generator)

    def lengths(self, sizes: Sizes) -> list[int]:
        return unsigned(sizes)

    def arrange(
        self, lengths: Sequence[int], batch: int, chunks: int, generator: torch.Generator
    ) -> list[int]:
        return by_length(lengths, batch, chunks, generator)


class LlavaLength(_Grouped):
    """LLaVA's length-grouped order over word counts."""


class LlavaModality(_Grouped):
    """LLaVA's `group_by_modality_length`: batches of one modality, even lengths over ranks."""

    lengths = staticmethod(signed)
    arrange = staticmethod(by_modality)


class M3Length(_Grouped):
    """M3's `group_by_length`: wide sorted windows, even lengths over ranks."""

    arrange = staticmethod(by_window)


class M3ModalityAuto(_Grouped):
    """M3's `group_by_modality_length_auto`: modalities apart, M3's length grouping inside."""

    lengths = staticmethod(signed)
    arrange = staticmethod(partial(by_modality, inner=by_window))


class M3Varlen(_Grouped):
    """M3's `group_by_varlen`: windows of neighbouring lengths over the whole set."""

    arrange = staticmethod(by_rank)
