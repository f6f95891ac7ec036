"""From hidden states to loss (supervised positions only) or logits (positions asked for).

Legend: B rows, T tokens, D width, V vocabulary, S supervised positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from retinue.model.lm.base import LanguageModel
from retinue.types import Batch, Output

Keep = Literal["all", "last", "none"]


class Head(nn.Module):
    """The end of the path. Owns nothing; a module so that parallel hooks can wrap its forward."""

    def forward(self, lm: LanguageModel, h_BTD: Tensor, batch: Batch, *, keep: Keep) -> Output:
        """With labels: loss sum and count. Else logits (B, T, V), or (B, V) of last tokens."""
        if batch.labels is not None and keep == "all":
            return self.loss(lm, h_BTD, batch)
        if keep == "none":
            return Output(hidden=h_BTD)
        if keep == "last":
            rows = torch.arange(len(h_BTD), device=h_BTD.device)
            h_BTD = h_BTD[rows, last_real(batch.segments)]
        return Output(logits=lm.logits(h_BTD))

    def loss(self, lm: LanguageModel, h_BTD: Tensor, batch: Batch) -> Output:
        assert batch.labels is not None
        assert batch.supervised is not None
        h_SD = h_BTD.flatten(0, 1).index_select(0, batch.supervised)
        targets_S = batch.labels.flatten().index_select(0, batch.supervised)
        weights_S = (
            None
            if batch.weights is None
            else batch.weights.flatten().index_select(0, batch.supervised)
        )
        count = torch.tensor(len(targets_S), device=h_BTD.device)
        if weights_S is not None:
            count = weights_S.sum()
        loss, losses_S = lm.losses(h_SD, targets_S, weights_S)
        return Output(loss_sum=loss, num_supervised=count, losses=losses_S)


def last_real(segments_BT: Tensor) -> Tensor:
    """(B,) column of the last token of each row that is not padding."""
    columns = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    return ((segments_BT > 0) * columns).max(dim=1).values
