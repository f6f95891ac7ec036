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
            return Retinue(config).to(dtype)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return Retinue(config).to(device=device, dtype=dtype)


def on_meta(model: Retinue) -> list[str]:
    """Names of parameters and persistent buffers that hold no data yet."""
    return [name for name, tensor in model.state_dict().items() if tensor.is_meta]
