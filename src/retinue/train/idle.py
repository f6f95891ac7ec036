"""What an update whose global batch has no picture does to the visual weights: leaf policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


def still(parameters: Sequence[nn.Parameter]) -> None:
    """Nothing: no gradient, hence no momentum and no decay; they stay bit-unchanged."""
    for parameter in parameters:
        parameter.grad = None


def momentum(parameters: Sequence[nn.Parameter]) -> None:
    """They go on by momentum and decay, since their gradient is zero and not absent.

    So do LLaVA's, whose text samples carry a black picture of which no token is used.
    """
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


IDLE: dict[str, Callable[[Sequence[nn.Parameter]], None]] = {"still": still, "momentum": momentum}
