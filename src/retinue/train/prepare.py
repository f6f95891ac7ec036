"""What happens to a model before a stage: dtypes, modes, recomputation, compiled layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from retinue.core.errors import ConfigError
from retinue.parallel.spec import ParallelSpec

VISUAL = ("encoders.", "connector.", "layout.", "fusion.")
"""Where the parameters live that a batch without pictures must not touch."""


def prepare(model: Any, *, compute: ParallelSpec) -> None:
    """Trained weights to fp32, training mode (frozen encoders excepted), recomputation, compile.

    model: a Retinue whose parameters have been frozen and freed. Weights that do not train keep
    their dtype.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    model.train()
    for encoder in model.encoders.values():
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
    if compute.activation == "full":
        model.activation_checkpointing_enable({"use_reentrant": False})
    if compute.compile:
        for layer in model.lm.layers:
            layer.compile(dynamic=True)


def unused_sharding(compute: ParallelSpec, *, ranks: int) -> list[str]:
    """A line on each setting of `parallel` that has no effect on this launch."""
    if ranks > 1 and compute.shard != "none":
        return []
    asked = [f"shard={compute.shard}"] if compute.shard != "none" else []
    asked += ["offload=true"] if compute.offload else []
    asked += ["gather=bf16"] if compute.gather != "model" else []
    why = "one process holds everything" if ranks == 1 else "replicas hold everything each"
    return [f"parallel.{setting} has no effect here: {why}" for setting in asked]


def check_room(processor: Any, *, max_tokens: int | None) -> None:
    """Raise ConfigError where one square picture leaves no room for a word and its target.

    processor: a Processor, whose own limit counts too.
    """
    limits = [limit for limit in (max_tokens, processor.spec.max_tokens) if limit is not None]
    if not limits or not processor.plan.spec.encoders:
        return
    stream = next(iter(processor.spec.streams.values()))
    grid = processor.spec.views.grid(stream.size, stream)
    taken, room = processor.plan.placeholders_for(grid), min(limits)
    if room - taken < 3:  # bos, a word, its target
        raise ConfigError(
            f"max_tokens {room} - {taken} tokens of a picture = {room - taken} for text",
            where="data.max_tokens",
            rule="a sample with a picture needs room for words as well",
            fix=f"raise max_tokens: {taken} + the longest conversation",
        )


def visual_parameters(model: nn.Module) -> Sequence[nn.Parameter]:
    """Parameters that only pictures reach."""
    return [p for name, p in model.named_parameters() if name.startswith(VISUAL)]


def finite(values: Sequence[torch.Tensor]) -> list[float]:
    """Scalars as numbers, fetched from the device at once."""
    return torch.stack([value.detach().float() for value in values]).tolist()
