"""Mixtures of experts: what their routers did in a forward, and how unevenly.

Legend: N tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retinue.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """One layer's decisions: scores (N, E) with their graph, and the chosen experts (N, K)."""

    logits_NE: Tensor
    chosen_NK: Tensor


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of a language model in layer order, as transformers' mixtures have them."""
    return [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Routing]]:
    """The list fills with one Routing per layer during a forward inside.

    Raises ConfigError for a model without routers.
    """
    found = routers(model)
    if not found:
        raise ConfigError(
            "this language model has no experts",
            where="model.lm",
            fix="use objective sft",
        )
    seen: list[Routing] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        logits, _, chosen = output
        seen.append(Routing(logits_NE=logits, chosen_NK=chosen))

    handles = [module.register_forward_hook(note) for module in found]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def imbalance(seen: Sequence[Routing], *, real_N: Tensor | None = None) -> Tensor:
    """(layers,) E / (N K) * sum over experts of tokens sent there times their mean chance.

    1 where all experts get the same share; the counts carry no gradient. real_N: which tokens
    count; None = all, padding too, as LLaMA2-Accessory has it. Source: Switch Transformer
    (arXiv 2101.03961, equation 4), for K choices.
    """
    losses = []
    for layer in seen:
        chances_NE = layer.logits_NE.float().softmax(-1)
        chosen_NK = layer.chosen_NK
        if real_N is not None:
            chances_NE, chosen_NK = chances_NE[real_N], chosen_NK[real_N]
        number = chances_NE.shape[1]
        sent_E = torch.bincount(chosen_NK.flatten(), minlength=number).to(chances_NE)
        losses.append(number / chosen_NK.numel() * (sent_E * chances_NE.mean(0)).sum())
    return torch.stack(losses)
