"""The stateless rope: a request's answer depends on nothing but the request.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.model.ropes.base import DynamicRope


class SequenceRope(DynamicRope):
    """Every document is scaled by its own length, whatever stands beside or came before it."""

    def lengths(self, positions_BT: Tensor) -> Tensor:
        """A document is a run of rising positions; its length is its last position plus one.

        With a cache the run goes on from earlier ones, whose keys keep the rotation they got.
        """
        starts_BT = torch.ones_like(positions_BT, dtype=torch.bool)
        starts_BT[:, 1:] = positions_BT[:, 1:] <= positions_BT[:, :-1]
        runs_BT = starts_BT.long().cumsum(1) - 1
        longest_BT = torch.zeros_like(positions_BT)
        longest_BT.scatter_reduce_(1, runs_BT, positions_BT, "amax")
        return longest_BT.gather(1, runs_BT) + 1
