"""What the loss of an update is divided by: leaf policies over supervised-token counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def by_tokens(counts: Sequence[float], *, total: float, micro_batches: int) -> list[float]:
    """The global number of supervised tokens: batching does not change the loss."""
    return [max(total, 1.0)] * len(counts)


def by_micro_batch(counts: Sequence[float], *, total: float, micro_batches: int) -> list[float]:
    """Each micro-batch's own number, averaged over micro-batches (LLaVA and transformers 4.37).

    A micro-batch without target adds nothing (the originals divide zero by zero).
    """
    return [max(count, 1.0) * micro_batches for count in counts]


Norm = Callable[..., list[float]]
"""(counts of this rank, total over ranks, micro-batches over ranks) -> a divisor for each."""

LOSS_NORMS: dict[str, Norm] = {"tokens": by_tokens, "micro_batch": by_micro_batch}
