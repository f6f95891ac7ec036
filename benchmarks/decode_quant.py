"""bench_decode with --quant: our twin on few-bit weights against generate in bf16, at batch 1.

Prints the times, the bytes of the language model's matrices, and what is lost: KL(full || few bits)
of the next-token distributions over the fixture's positions. The fixture has random weights, whose
logits are all alike; benchmarks/quant_quality.py measures a trained model.

Legend: S positions, V tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from retinue.model.quant.swap import quantize, quantized
from retinue.types import Batch

TARGETS = {"int4": 3.5, "int8": 2.0}
"""Times faster than generate; 1 for kinds whose purpose is memory alone."""


def few_bits(model: Any, kind: str, *, head: bool) -> Any:
    """A copy of the model with its language model's layers, and its head, in few bits."""
    made = copy.deepcopy(model)
    quantize(made, kind=kind, head=head)
    return made


def matrix_bytes(model: Any) -> tuple[int, int]:
    """Bytes of the quantized layers now, and what bf16 would take."""
    now, bf16 = 0, 0
    for _, layer in quantized(model):
        held = [t for name, t in layer.named_buffers() if name != "like"]
        now += sum(t.numel() * t.element_size() for t in held)
        bf16 += 2 * layer.out_features * layer.in_features
    return now, bf16


@torch.no_grad()
def divergence(full: Any, other: Any, batch: Batch) -> dict[str, float]:
    """KL(full || other) in nats over all real positions of a batch, and how often both agree."""
    real = batch.segments > 0
    sides = [model.run(batch).logits[real].float().log_softmax(-1) for model in (full, other)]
    return compare(*sides)


def compare(full_SV: torch.Tensor, other_SV: torch.Tensor) -> dict[str, float]:
    """The same of log-probabilities at S positions over V tokens."""
    kl = (full_SV.exp() * (full_SV - other_SV)).sum(-1)
    entropy = -(full_SV.exp() * full_SV).sum(-1)
    return {
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "entropy_mean": float(entropy.mean()),
        "same_first": float((full_SV.argmax(-1) == other_SV.argmax(-1)).float().mean()),
    }


def say(kind: str, model: Any, loss: dict[str, float]) -> None:
    now, bf16 = matrix_bytes(model)
    print(
        f"{kind}: {now / 2**20:.1f} MiB of codes for {bf16 / 2**20:.1f} MiB in bf16; "
        f"KL(full || {kind}) mean {loss['kl_mean']:.5f}, max {loss['kl_max']:.5f} nats "
        f"(entropy {loss['entropy_mean']:.2f}), same likeliest token {loss['same_first']:.1%}"
    )
