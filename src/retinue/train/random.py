"""The random generators of a process: read, set, and seeded per stage."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from retinue.core.seed import stream_seed


def seed_all(seed: int, *names: str | int) -> None:
    """Seed python's, numpy's and torch's generators for the stream called `names`."""
    value = stream_seed(seed, *names)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def random_state(device: torch.device) -> dict[str, Any]:
    """States of all generators that a step can draw from."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, extra = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, [int(key) for key in keys], position, has_gauss, gauss],
        "python": [version, list(numbers), extra],
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` gave; a device's part only where it was saved."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, numbers, extra = state["python"]
    random.setstate((version, tuple(numbers), extra))
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
