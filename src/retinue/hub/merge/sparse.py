"""Methods that thin out task vectors before they are added: TIES and DARE.

Legend: T one tensor of any shape, N checkpoints. A task vector is a checkpoint minus the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from retinue.core.seed import stream_seed
from retinue.hub.merge.base import Merger, Part


def trim(delta_T: Tensor, *, density: float) -> Tensor:
    """The largest numbers of a task vector by magnitude, the others zero.

    density: share that is kept, rounded to a whole number of them; of equal ones the earlier.
    """
    keep = round(density * delta_T.numel())
    if keep >= delta_T.numel():
        return delta_T
    if keep == 0:
        return torch.zeros_like(delta_T)
    size = delta_T.flatten().abs()
    place = size.numel() - keep
    edge = float(np.partition(size.numpy(), place)[place])  # five times as fast as kthvalue
    kept = size > edge
    ties = (size == edge).nonzero().flatten()
    kept[ties[: keep - int(kept.sum())]] = True
    return delta_T * kept.view_as(delta_T)


def drop(delta_T: Tensor, *, density: float, seed: int) -> Tensor:
    """Each number kept with probability `density` and divided by it, else zero.

    The same seed and shape give the same choice. Source: arXiv 2311.03099, section 3.
    """
    random = torch.Generator().manual_seed(seed)
    kept_T = torch.rand(delta_T.shape, generator=random) < density
    return delta_T * kept_T / density


def elect(deltas: Sequence[Tensor], weights: Sequence[float], *, mean: bool) -> Tensor:
    """One sign for each number, that of the weighted sum; then what agrees with it, together.

    deltas: N x (T); mean: divide by the sizes of the weights of those that agree, else only sum.
    Where the weighted sum is zero, so is the result. Source: arXiv 2306.01708, section 3.
    """
    total_T = torch.zeros_like(deltas[0])
    for delta_T, weight in zip(deltas, weights, strict=True):
        total_T.add_(delta_T, alpha=weight)
    sign_T, sum_T, count_T = total_T.sign_(), *(torch.zeros_like(total_T) for _ in range(2))
    for delta_T, weight in zip(deltas, weights, strict=True):
        agrees_T = (delta_T * weight).sign() * sign_T > 0
        sum_T.add_(delta_T * agrees_T, alpha=weight)
        count_T.add_(agrees_T, alpha=abs(weight))
    return sum_T / count_T.masked_fill_(count_T == 0, 1) if mean else sum_T


class Ties(Merger):
    """TIES: trim task vectors, elect a sign for each number, average those that agree with it.

    density: share of each tensor's numbers that is kept (the paper ranks a whole model's numbers at
    once); normalize: divide by the weights of those that agree; scale: of the result, the paper's
    lambda. Source: arXiv 2306.01708.
    """

    kind: Literal["ties"] = "ties"
    needs_base: ClassVar[bool] = True
    density: float = Field(default=0.2, gt=0, le=1)
    normalize: bool = True
    scale: FiniteFloat = 1.0

    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        assert base_T is not None
        deltas = [trim(part.x_T - base_T, density=self.density) for part in parts]
        chosen_T = elect(deltas, [part.weight for part in parts], mean=self.normalize)
        return base_T + chosen_T * self.scale


class DareLinear(Merger):
    """DARE: numbers of task vectors dropped at random, the rest enlarged; then task arithmetic.

    density: share that is kept, 1 - p of the paper; seed: of the choice, which depends on the seed,
    the place of the checkpoint in the list and the tensor's name alone; scale: of the sum.
    Source: arXiv 2311.03099.
    """

    kind: Literal["dare_linear"] = "dare_linear"
    needs_base: ClassVar[bool] = True
    density: float = Field(default=0.5, gt=0, le=1)
    seed: int = 0
    scale: FiniteFloat = 1.0

    def deltas(self, parts: Sequence[Part], base_T: Tensor) -> list[Tensor]:
        """The thinned task vectors."""
        return [
            drop(
                part.x_T - base_T,
                density=self.density,
                seed=stream_seed(self.seed, "dare", part.stream),
            )
            for part in parts
        ]

    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        assert base_T is not None
        out_T = base_T.clone()
        for part, delta_T in zip(parts, self.deltas(parts, base_T), strict=True):
            out_T.add_(delta_T, alpha=part.weight * self.scale)
        return out_T


class DareTies(DareLinear):
    """DARE before TIES: numbers dropped at random, then a sign elected, what agrees averaged.

    normalize: divide by the weights of those that agree. Source: arXiv 2311.03099, section 4.
    """

    kind: Literal["dare_ties"] = "dare_ties"  # type: ignore[assignment]
    normalize: bool = True

    def merge(self, parts: Sequence[Part], *, base_T: Tensor | None = None) -> Tensor:
        assert base_T is not None
        weights = [part.weight for part in parts]
        chosen_T = elect(self.deltas(parts, base_T), weights, mean=self.normalize)
        return base_T + chosen_T * self.scale
