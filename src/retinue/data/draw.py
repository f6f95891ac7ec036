"""An epoch of a fixed number of samples, shared out among the sources.

Source: the sampling options of instruct_flamingo; square roots are InstructBLIP's (arXiv
2305.06500).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from retinue.core.seed import stream_seed
from retinue.core.spec import Spec
from retinue.data.sampler import permutation


class EpochSpec(Spec):
    """samples: of an epoch; share: by the sources' ratios, or by the roots of their sizes.

    replace: draw each anew, so that some come twice and some never; else no sample of a source
    comes a second time before all others came.
    """

    samples: int = Field(gt=0)
    share: Literal["ratio", "sqrt"] = "ratio"
    replace: bool = False


def counts_of(sizes: Sequence[int], ratios: Sequence[float], *, spec: EpochSpec) -> list[int]:
    """Samples of each source, adding up to `spec.samples`; the largest remainders round up."""
    weights = [
        (ratio if spec.share == "ratio" else size**0.5) if size else 0.0
        for size, ratio in zip(sizes, ratios, strict=True)
    ]
    exact = [spec.samples * weight / sum(weights) for weight in weights]
    counts = [int(part) for part in exact]
    ranked = sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])
    for k in ranked[: spec.samples - sum(counts)]:
        counts[k] += 1
    return counts


def drawn(
    size: int, count: int, *, epoch: int, spec: EpochSpec, seed: int, number: int
) -> list[int]:
    """`count` of a source's `size` samples in epoch `epoch`: a function of the arguments alone."""
    if not count:
        return []
    if spec.replace:
        generator = torch.Generator().manual_seed(stream_seed(seed, "draw", number, epoch))
        found: list[int] = torch.randint(size, (count,), generator=generator).tolist()
        return found
    start, stop = epoch * count, (epoch + 1) * count
    chosen: list[int] = []
    for turn in range(start // size, -(-stop // size)):
        generator = torch.Generator().manual_seed(stream_seed(seed, "draw", number, turn))
        order = permutation(size, generator)
        chosen += order[max(start - turn * size, 0) : min(stop - turn * size, size)]
    return chosen
