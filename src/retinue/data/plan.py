"""The epoch plan: which samples form which micro-batch of which optimizer step.

A pure function of (seed, epoch, sizes, budgets). It knows no ranks: `shard` deals the micro-batches
of a step to any number of ranks, so a data position is just a global step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from retinue.core.errors import ConfigError, DataError
from retinue.core.seed import stream_seed
from retinue.data.packing import first_fit_decreasing
from retinue.data.sampler import SAMPLERS, Sizes, permutation, slices
from retinue.data.spec import DataSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Samples of one forward. A `filler` keeps a rank busy and counts for nothing (no labels)."""

    samples: tuple[int, ...]
    filler: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """steps[s][m] = the samples of micro-batch m of step s; `overlong`: samples left out."""

    epoch: int
    steps: list[list[list[int]]]
    overlong: list[int]

    def __len__(self) -> int:
        return len(self.steps)

    def shard(self, step: int, *, rank: int = 0, world: int = 1) -> list[MicroBatch]:
        """The micro-batches of `rank`, the same number for every rank.

        Micro-batch m goes to rank m % world. Where they do not divide, those with most samples
        are halved; where there are fewer samples than ranks, the last ranks get fillers.
        """
        micro = [list(samples) for samples in self.steps[step]]
        while len(micro) % world:
            largest = max(range(len(micro)), key=lambda m: (len(micro[m]), -m))
            samples = micro[largest]
            if len(samples) == 1:
                break
            half = (len(samples) + 1) // 2
            micro[largest] = samples[:half]
            micro.append(samples[half:])
        dealt = [MicroBatch(samples=tuple(samples)) for samples in micro]
        missing = -len(dealt) % world
        dealt += [MicroBatch(samples=(micro[0][0],), filler=True)] * missing
        return dealt[rank::world]


def plan_epoch(
    sizes: Sizes,
    chosen: Sequence[int],
    *,
    spec: DataSpec,
    epoch: int,
    global_batch: int,
    micro_batch: int = 1,
) -> EpochPlan:
    """Cut the samples `chosen` for an epoch into steps.

    global_batch: samples of a step over all ranks (packs, with packing "window"); micro_batch:
    samples of one padded forward. Raises ConfigError where they do not divide, DataError for a
    sample above max_tokens or max_views under `overlong: error`.
    """
    if spec.packing == "none" and global_batch % micro_batch:
        raise ConfigError(
            f"global_batch {global_batch} is no multiple of micro_batch {micro_batch}",
            rule=f"{global_batch} / {micro_batch} = {global_batch / micro_batch:.2f} micro-batches",
            fix=f"use global_batch {-(-global_batch // micro_batch) * micro_batch}",
        )
    kept, overlong = _within_limits(sizes, chosen, spec=spec)
    local = sizes.take(kept)
    if spec.max_tokens is not None:
        local = _clipped(local, spec.max_tokens)
    generator = torch.Generator().manual_seed(stream_seed(spec.seed, "order", epoch))
    sampler = SAMPLERS.get(spec.sampler)()
    order = sampler.order(
        local,
        micro_batch=micro_batch,
        num_micro=max(global_batch // micro_batch, 1),
        generator=generator,
    )
    assert sorted(order) == list(range(len(kept))), f"{spec.sampler} returned no permutation"
    if spec.packing == "window":
        packs = [
            pack
            for window in slices(order, spec.window)
            for pack in _packs(window, local, spec=spec, generator=generator)
        ]
        steps = [packs[at : at + global_batch] for at in range(0, len(packs), global_batch)]
    elif spec.packing == "step":
        steps = [
            _packs(step, local, spec=spec, generator=generator)
            for step in slices(order, global_batch)
        ]
    else:
        steps = [slices(step, micro_batch) for step in slices(order, global_batch)]
    if spec.drop_last and steps and _extent(steps[-1], spec=spec) < global_batch:
        steps.pop()
    return EpochPlan(
        epoch=epoch,
        steps=[[[kept[i] for i in micro] for micro in step] for step in steps],
        overlong=overlong,
    )


def _extent(step: list[list[int]], *, spec: DataSpec) -> int:
    """What global_batch counts of a step."""
    return len(step) if spec.packing == "window" else sum(map(len, step))


def _packs(
    window: list[int], sizes: Sizes, *, spec: DataSpec, generator: torch.Generator
) -> list[list[int]]:
    """Packs of a window in random order, since first-fit-decreasing puts the long ones first."""
    assert spec.max_tokens is not None
    packs = first_fit_decreasing(
        window,
        tokens=sizes.tokens,
        views=sizes.views,
        max_tokens=spec.max_tokens,
        max_views=spec.max_views,
    )
    return [packs[k] for k in permutation(len(packs), generator)]


def _clipped(sizes: Sizes, limit: int) -> Sizes:
    return Sizes(
        tokens=[min(tokens, limit) for tokens in sizes.tokens],
        views=sizes.views,
        words=sizes.words,
        types=sizes.types,
    )


def _within_limits(
    sizes: Sizes, chosen: Sequence[int], *, spec: DataSpec
) -> tuple[list[int], list[int]]:
    """(samples to plan, samples left out). Truncation mends tokens, never a number of pictures."""
    max_tokens = spec.max_tokens or float("inf")
    max_views = spec.max_views or float("inf")
    kept: list[int] = []
    out: list[int] = []
    for i in chosen:
        long = sizes.tokens[i] > max_tokens and spec.overlong != "truncate"
        (out if long or sizes.views[i] > max_views else kept).append(i)
    if out and spec.overlong != "skip":
        first = out[0]
        raise DataError(
            f"{len(set(out))} samples exceed a limit; the first has {sizes.tokens[first]} tokens "
            f"and {sizes.views[first]} views",
            where=f"sample {first} of the mixture",
            rule=f"max_tokens {spec.max_tokens}, max_views {spec.max_views}",
            fix="raise the limit, or set overlong to skip"
            + (" or truncate" if spec.overlong == "error" else ""),
        )
    return kept, out


class Schedule:
    """The plans of all epochs as one sequence of global steps, each epoch planned when reached."""

    def __init__(self, plan: Callable[[int], EpochPlan]) -> None:
        self._plan = plan
        self._starts = [0]
        self._latest: EpochPlan | None = None

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of an epoch; the latest is kept."""
        if self._latest is None or self._latest.epoch != epoch:
            self._latest = self._plan(epoch)
            if not len(self._latest):
                raise DataError(
                    f"epoch {epoch} has no step",
                    rule="an epoch holds at least one optimizer step",
                    fix="add data, lower global_batch, or set drop_last to false",
                )
        return self._latest

    def num_steps(self, epochs: float) -> int:
        """Steps of the first `epochs` epochs; a fraction counts part of the last."""
        whole = int(epochs)
        self._extend(whole)
        rest = epochs - whole
        return self._starts[whole] + (round(len(self.epoch(whole)) * rest) if rest else 0)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step within the epoch) of a global step."""
        while self._starts[-1] <= step:
            self._extend(len(self._starts))
        epoch = bisect_right(self._starts, step) - 1
        return epoch, step - self._starts[epoch]

    def shard(self, step: int, *, rank: int = 0, world: int = 1) -> list[MicroBatch]:
        """A rank's micro-batches of a global step."""
        epoch, local = self.locate(step)
        return self.epoch(epoch).shard(local, rank=rank, world=world)

    def _extend(self, epochs: int) -> None:
        for epoch in range(len(self._starts) - 1, epochs):
            self._starts.append(self._starts[-1] + len(self.epoch(epoch)))
