"""Gradient of attention in reduced precision on a CPU, by products of blocks of queries.

Legend: n pieces, H heads, M = n * H, L tokens of a piece, Q queries of a block, K keys they see,
D head width, E = D + 2.

Torch's own kernel for this gradient reaches about 90 GF/s in bfloat16 where products of matrices
reach several hundred; this form takes four fifths of its time or less, the compiled one
(`native.attention`, where there is a compiler) two fifths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retinue.ops.native.attention import equal_pieces, serves

QUERIES = 256
"""Queries of one block (measured against 128 and 512)."""


def long_backward(
    grad_nHLD: Tensor,
    q_nHLD: Tensor,
    k_nHKD: Tensor,
    v_nHKD: Tensor,
    out_nHLD: Tensor,
    lse_nHL: Tensor,
    *,
    scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`block_backward`, by the compiled kernel where it serves."""
    backward = equal_pieces if serves(q_nHLD) else block_backward
    return backward(
        grad_nHLD, q_nHLD, k_nHKD, v_nHKD, out_nHLD, lse_nHL, scale=scale, causal=causal
    )


def block_backward(
    grad_nHLD: Tensor,
    q_nHLD: Tensor,
    k_nHKD: Tensor,
    v_nHKD: Tensor,
    out_nHLD: Tensor,
    lse_nHL: Tensor,
    *,
    scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (n, H, L, D), k and v (n, H, K, D) from the forward's output and log-sum-exp.

    causal: query and key of one place are the last that see each other, and there are as many
    keys as queries. Weights are computed again from `lse` in fp32; gradients of keys and values
    are summed in fp32. Reference: FlashAttention, arXiv 2205.14135, algorithm 4.
    """
    kind, shape = q_nHLD.dtype, q_nHLD.shape
    L, D = shape[2:]
    q, g = q_nHLD.reshape(-1, L, D), grad_nHLD.reshape(-1, L, D)
    k, v = k_nHKD.reshape(len(q), -1, D), v_nHKD.reshape(len(q), -1, D)
    lse_ML1 = lse_nHL.reshape(-1, L, 1)
    # two more columns (high and low half) let the product subtract what softmax's gradient does
    drop_ML1 = -(g.float() * out_nHLD.reshape(-1, L, D)).sum(-1, keepdim=True)
    high_ML1 = drop_ML1.to(kind)
    g_MLE = torch.cat([g, high_ML1, (drop_ML1 - high_ML1).to(kind)], -1)
    v_MEL = torch.cat([v, v.new_ones(*v.shape[:2], 2)], -1).transpose(1, 2)
    scaled, k_MDL = q * scale, k.transpose(1, 2)
    dq = torch.empty_like(q)
    dk, dv = (k.new_zeros(k.shape, dtype=torch.float32) for _ in range(2))
    for at in range(0, L, QUERIES):
        block = slice(at, min(at + QUERIES, L))
        K = block.stop if causal else k.shape[1]
        scores_MQK = torch.bmm(scaled[:, block], k_MDL[..., :K]).float()
        w_MQK = scores_MQK.sub_(lse_ML1[:, block]).exp_().to(kind)
        if causal:
            w_MQK[..., at:].tril_()
        ds_MQK = torch.bmm(g_MLE[:, block], v_MEL[..., :K]).mul_(w_MQK)
        dv[:, :K] += torch.bmm(w_MQK.transpose(1, 2), g[:, block])
        dk[:, :K] += torch.bmm(ds_MQK.transpose(1, 2), scaled[:, block])
        torch.bmm(ds_MQK, k[:, :K], out=dq[:, block])
    dq.mul_(scale)
    return dq.view(shape), dk.view(k_nHKD.shape), dv.view(v_nHKD.shape)
