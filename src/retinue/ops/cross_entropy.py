"""Cross-entropy over supervised rows: a sum and a count, never a mean.

Legend: S rows that have a target, D hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.ops.backend import Form
from retinue.types import IGNORE

CHUNK = 1024
"""Rows of logits held at once; below about 300 the products lose speed."""


def cross_entropy_sum(
    logits_SV: Tensor, targets_S: Tensor, *, weights_S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of -log p(target) in fp32 and the number of targets (the sum of weights if given).

    Rows whose target is IGNORE count nothing.
    """
    loss_S = torch.nn.functional.cross_entropy(
        logits_SV.float(), targets_S, ignore_index=IGNORE, reduction="none"
    )
    return _sums(loss_S, targets_S, weights_S)


def linear_cross_entropy_sum(
    hidden_SD: Tensor,
    weight_VD: Tensor,
    targets_S: Tensor,
    *,
    bias: Tensor | None = None,
    weights_S: Tensor | None = None,
    chunk: int = CHUNK,
    softcap: float | None = None,
    backend: Form | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(hidden weight^T + bias): (sum in fp32, number of targets).

    hidden_SD: rows already selected (see `spans.supervised_index`). weights_S scales each row;
    the number is then their sum. softcap: logits become softcap * tanh(logits / softcap).
    """
    logits_SV = torch.nn.functional.linear(hidden_SD, weight_VD, bias).float()
    if softcap is not None:
        logits_SV = softcap * (logits_SV / softcap).tanh()
    return cross_entropy_sum(logits_SV, targets_S, weights_S=weights_S)


def _sums(loss_S: Tensor, targets_S: Tensor, weights_S: Tensor | None) -> tuple[Tensor, Tensor]:
    counted_S = targets_S != IGNORE
    if weights_S is None:
        return loss_S.sum(), counted_S.sum()
    weights_S = weights_S.float() * counted_S
    return (loss_S * weights_S).sum(), weights_S.sum()
