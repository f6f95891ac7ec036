"""The second snippet of SPHINX's README, as each of its processes runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from retinue.compat.sphinx import SPHINXModel

QUESTION = [["What's in the image?", None]]
GENERATION = {"max_gen_len": 6, "temperature": 0.9, "top_p": 0.5, "seed": 0}


def second_snippet(number: int, mesh: Any, folder: Path) -> dict[str, Any]:
    """A group of ranks, one model: the reply, and what part of each projection is here."""
    del number, mesh
    model = SPHINXModel.from_pretrained(
        pretrained_path=folder,
        mp_group=torch.distributed.new_group(ranks=[0, 1]),
        device="cpu",
    )
    parts = {
        name: parameter.to_local().numel() / parameter.numel()  # type: ignore[operator]
        for name, parameter in model.model.named_parameters()
        if "_proj" in name
    }
    reply = model.generate_response(QUESTION, None, **GENERATION)  # type: ignore[arg-type]
    return {"reply": reply, "parts": parts}
