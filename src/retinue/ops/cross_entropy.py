"""Cross-entropy over supervised rows: a sum and a count, never a mean.

Legend: S rows that have a target, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retinue.ops.backend import Form, form
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
    loss_sum, _ = linear_cross_entropy(
        hidden_SD,
        weight_VD,
        targets_S,
        bias=bias,
        weights_S=weights_S,
        chunk=chunk,
        softcap=softcap,
        backend=backend,
    )
    counted_S = targets_S != IGNORE
    number = counted_S if weights_S is None else weights_S.float() * counted_S
    return loss_sum, number.sum()


def linear_cross_entropy(
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
    """As `linear_cross_entropy_sum`: (sum in fp32, loss of each row (S,) in fp32).

    The losses of rows are before weights, 0 where the target is IGNORE, and have no gradient.
    """
    kind = hidden_SD.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden_SD, weight_VD = hidden_SD.to(dtype), weight_VD.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if form(backend) == "plain":
        with torch.autocast(kind, enabled=False):
            logits_SV = torch.nn.functional.linear(hidden_SD, weight_VD, bias).float()
        if softcap is not None:
            logits_SV = softcap * (logits_SV / softcap).tanh()
        loss_S = torch.nn.functional.cross_entropy(
            logits_SV, targets_S, ignore_index=IGNORE, reduction="none"
        )
        return _sums(loss_S, targets_S, weights_S)[0], loss_S.detach()
    counted_S = targets_S != IGNORE
    scales_S = counted_S.float() if weights_S is None else weights_S.float() * counted_S
    loss_sum, losses_S = _ChunkedLinearCrossEntropy.apply(
        hidden_SD, weight_VD, bias, targets_S.clamp(min=0), scales_S, chunk, softcap
    )
    return loss_sum, losses_S * counted_S


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Gradients are computed beside the loss, so that logits live for one chunk only."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_S: Tensor,
        scales_S: Tensor,
        chunk: int,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias, _, wants_scales, *_ = ctx.needs_input_grad
        wants = wants_hidden or wants_weight or wants_bias
        losses_S = torch.zeros(len(hidden_SD), dtype=torch.float32, device=hidden_SD.device)
        d_hidden = torch.empty_like(hidden_SD) if wants_hidden else None
        # one chunk is one product; several are summed in fp32
        d_weight = None
        d_bias = None
        if bias_V is not None and wants_bias:
            d_bias = torch.zeros_like(bias_V, dtype=torch.float32)
        with torch.autocast(hidden_SD.device.type, enabled=False):
            for at in range(0, len(hidden_SD), chunk):
                h_CD, t_C1 = hidden_SD[at : at + chunk], targets_S[at : at + chunk, None]
                scale_C1 = scales_S[at : at + chunk, None]
                logits_CV = torch.nn.functional.linear(h_CD, weight_VD, bias_V).float()
                if softcap is not None:
                    logits_CV = (logits_CV / softcap).tanh_().mul_(softcap)
                slope_CV = None if softcap is None else 1 - (logits_CV / softcap).square_()
                d_CV = logits_CV.log_softmax(1)
                losses_S[at : at + chunk] = -d_CV.gather(1, t_C1)[:, 0]
                if not wants:
                    continue
                d_CV.exp_().scatter_add_(1, t_C1, torch.full_like(scale_C1, -1.0))
                if slope_CV is not None:
                    d_CV.mul_(slope_CV)
                # scaled and rounded in one pass
                d_CV = torch.mul(d_CV, scale_C1, out=torch.empty_like(d_CV, dtype=hidden_SD.dtype))
                if d_bias is not None:
                    d_bias += d_CV.sum(0, dtype=torch.float32)
                if d_hidden is not None:
                    torch.mm(d_CV, weight_VD, out=d_hidden[at : at + chunk])
                if wants_weight:
                    part_VD = d_CV.T @ h_CD
                    d_weight = part_VD if d_weight is None else d_weight.float().add_(part_VD)
        if wants_weight:
            d_weight = torch.zeros_like(weight_VD) if d_weight is None else d_weight
            d_weight = d_weight.to(weight_VD.dtype)
        d_bias = None if d_bias is None or bias_V is None else d_bias.to(bias_V.dtype)
        assert not wants_scales, "weights of rows have no gradient"
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.mark_non_differentiable(losses_S)
        return (losses_S * scales_S).sum(), losses_S

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = (None if d is None else d * grad.to(d.dtype) for d in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _sums(loss_S: Tensor, targets_S: Tensor, weights_S: Tensor | None) -> tuple[Tensor, Tensor]:
    counted_S = targets_S != IGNORE
    if weights_S is None:
        return loss_S.sum(), counted_S.sum()
    weights_S = weights_S.float() * counted_S
    return (loss_S * weights_S).sum(), weights_S.sum()
