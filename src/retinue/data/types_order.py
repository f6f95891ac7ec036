"""Orders by type: steps of one type each, as LLaMA2-Accessory has them, or of all in proportion."""

from __future__ import annotations

import numpy as np
import torch

from retinue.data.sampler import Sizes, permutation, slices


class AccessoryTypes:
    """Global batches of one type and like lengths, in random order; what fills none comes last.

    Types stand in the order of their first samples. The original never visits the rest, which are
    the longest of every type; with `drop_last` most of it is left out here too.
    Source: Alpha-VLLM/LLaMA2-Accessory (its sampler), numpy's generator with seed + epoch.
    """

    shuffled = True

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]:
        groups: dict[str | None, list[int]] = {}
        for number, kind in enumerate(sizes.types):
            groups.setdefault(kind, []).append(number)
        step = micro_batch * num_micro
        blocks: list[list[int]] = []
        rest: list[int] = []
        for members in groups.values():
            ranked = sorted(members, key=lambda i: sizes.tokens[i])
            full = len(ranked) // step * step
            blocks += slices(ranked[:full], step)
            rest += ranked[full:]
        if self.shuffled:
            places = list(range(len(blocks)))
            np.random.default_rng(generator.initial_seed()).shuffle(places)
            blocks = [blocks[place] for place in places]
        return [i for block in blocks for i in block] + rest


class AccessorySorted(AccessoryTypes):
    """The same, type after type, short samples first."""

    shuffled = False


class EvenTypes:
    """Every type spread evenly over the epoch, so that each step has all in proportion."""

    def order(
        self, sizes: Sizes, *, micro_batch: int, num_micro: int, generator: torch.Generator
    ) -> list[int]:
        groups: dict[str | None, list[int]] = {}
        for index in permutation(len(sizes), generator):
            groups.setdefault(sizes.types[index], []).append(index)
        places = [
            ((at + 0.5) / len(members), rank, index)
            for rank, members in enumerate(sorted(groups.values(), key=len))
            for at, index in enumerate(members)
        ]
        return [index for _, _, index in sorted(places)]
