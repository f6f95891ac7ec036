"""Model names from paths. Only for drop-in compatibility: nothing is ever chosen by a name."""

from __future__ import annotations


def model_name(path: str) -> str:
    """LLaVA's name of a checkpoint path: its last part, its parent too for `checkpoint-*`."""
    parts = path.strip("/").split("/")
    if parts[-1].startswith("checkpoint-") and len(parts) > 1:
        return "_".join(parts[-2:])
    return parts[-1]
