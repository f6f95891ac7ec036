"""The rope of MOSS2's and InternLM2's released code.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.model.ropes.base import DynamicRope


class StickyRope(DynamicRope):
    """All is scaled by the longest sequence ever seen: a long request changes all later answers.

    Only for comparing with the originals. Their length counts keys, padding on the left included;
    here it is the largest position plus one, which agrees for all batches without such padding.
    """

    longest = 0

    def lengths(self, positions_BT: Tensor) -> Tensor:
        if not positions_BT.is_meta:  # a model without weights meets no requests
            self.longest = max(self.longest, int(positions_BT.max()) + 1)
        return torch.full_like(positions_BT, self.longest)
