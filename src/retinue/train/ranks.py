"""What the loop asks of other processes; one process answers for itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


class Ranks:
    """Sums over the ranks of a launch. This base is a launch of one."""

    rank = 0
    size = 1

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks."""
        return list(values)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all ranks in place."""
