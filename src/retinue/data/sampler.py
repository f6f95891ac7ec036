"""Samplers: the order in which an epoch visits its samples, as pure functions of a generator.

A sampler reads per-sample sizes and returns a permutation. How the permutation is cut into steps
and micro-batches is the plan's work (`data/plan.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from retinue.core.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is known of every sample without decoding it; four lists of one length.

    tokens: tokens of the whole sequence, placeholders included; views: pictures the encoders see
    words: white-space words of the conversation, an image counting as one (LLaVA's measure)
    types: the `type` of the sample's source, None where the recipe gives none
    """

    tokens: Sequence[int]
    views: Sequence[int]
    words: Sequence[int]
    types: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: Sequence[int]) -> Sizes:
        """The sizes of the samples at `indices`, repeats allowed."""
        return Sizes(
            tokens=[self.tokens[i] for i in indices],
            views=[self.views[i] for i in indices],
            words=[self.words[i] for i in indices],
            types=[self.types[i] for i in indices],
        )


class Sampler(Protocol):
    """order(): a permutation of range(len(sizes)).

    micro_batch: samples of one micro-batch; num_micro: micro-batches of one optimizer step over
    all ranks, so that micro_batch * num_micro is the global batch.
    """

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]: ...


SAMPLERS: Registry[type[Sampler]] = Registry(
    "sampler",
    {
        "shuffle": "retinue.data.sampler:Shuffle",
        "sequential": "retinue.data.sampler:Sequential",
        "length": "retinue.data.sampler:Length",
        "even-types": "retinue.data.types_order:EvenTypes",
        "accessory": "retinue.data.types_order:AccessoryTypes",
        "accessory-sorted": "retinue.data.types_order:AccessorySorted",
        "llava-length": "retinue.data.grouping:LlavaLength",
        "llava-modality": "retinue.data.grouping:LlavaModality",
        "m3-length": "retinue.data.grouping:M3Length",
        "m3-modality-auto": "retinue.data.grouping:M3ModalityAuto",
        "m3-varlen": "retinue.data.grouping:M3Varlen",
    },
)


class Sequential:
    """The order of the files."""

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]:
        return list(range(len(sizes)))


class Shuffle:
    """A uniform permutation."""

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]:
        return permutation(len(sizes), generator)


class Length:
    """Steps of similar token counts: windows of 50 steps sorted by length, steps then shuffled."""

    window = 50

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]:
        step = micro_batch * num_micro
        shuffled = permutation(len(sizes), generator)
        ranked = [
            i
            for window in slices(shuffled, step * self.window)
            for i in sorted(window, key=lambda i: -sizes.tokens[i])
        ]
        full = len(ranked) // step
        blocks = slices(ranked[: full * step], step)
        chosen = [blocks[k] for k in permutation(full, generator)]
        return [i for block in [*chosen, ranked[full * step :]] for i in block]


def permutation(n: int, generator: torch.Generator) -> list[int]:
    """`torch.randperm` on the CPU as a list."""
    found: list[int] = torch.randperm(n, generator=generator).tolist()
    return found


def slices(values: list[int], size: int) -> list[list[int]]:
    """Consecutive runs of `size`, the last one possibly shorter."""
    return [values[at : at + size] for at in range(0, len(values), size)]
