"""A model from its config: on the meta device, or with fresh weights."""

from __future__ import annotations

import torch

from retinue.model.retinue import Retinue
from retinue.model.spec import RetinueConfig


def build_model(
    config: RetinueConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int | None = None,
) -> Retinue:
    """A model with random weights (seeded if asked); device "meta" allocates nothing.

    Raises ConfigError where specs and backbone sizes do not fit each other.
    """
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return cast(Retinue(config), dtype)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return cast(Retinue(config), dtype).to(device)


def cast(model: Retinue, dtype: torch.dtype) -> Retinue:
    """The model with its parameters in `dtype`, in place.

    Buffers stay: rotary frequencies rounded to a half type would shift far positions, and
    transformers' `from_pretrained` keeps them whole as well.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


def on_meta(model: Retinue) -> list[str]:
    """Names of parameters and persistent buffers that hold no data yet."""
    return [name for name, tensor in model.state_dict().items() if tensor.is_meta]
