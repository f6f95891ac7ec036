"""A whole tiny run in each process of a launch, for tests: with `tiny_ranks`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import tiny_run
from retinue.hub.save import save
from retinue.parallel.launch import alone, peers_lost
from retinue.train.state import Checkpoints


def changes(shard: str, **parallel: Any) -> dict[str, Any]:
    """Stages that a layout could disturb: adapters, then weights some of which were merged."""
    lora, full = tiny_run.recipe(Path())["train"]["stages"][::-1]
    lora |= {"steps": 3, "trainable": {"lm.**": {"lora": {"r": 2}}, "connector.**": "full"}}
    full |= {"steps": 4, "trainable": {"lm.**": "full", "encoders.**": "full"}}
    # keys' biases have no gradient but rounding, which a small eps would make steps of
    full["optim"] = {"lr": 1e-2, "eps": 1e-4}
    stages = [{**stage, "micro_batch": 1} for stage in (lora, full)]
    return {
        "train": {"precision": "fp32", "stages": stages},
        "parallel": {"shard": shard, **parallel},
        "checkpoint": {"every": 1, "keep": None},
    }


def work(rank: int, root: Path, folder: Path, until: int | None, parallel: dict[str, Any]) -> str:
    """The run; or the run until its first process is killed while it writes update `until` + 1."""

    def torn(model: Any, processor: Any, place: Path) -> None:
        save(model, processor, place)
        if until is not None and len(Checkpoints(folder / "checkpoints").all()) == until:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        return tiny_run.run(root, folder, save_model=torn, **changes(**parallel)).folder.name
    except Exception as error:
        if not peers_lost(error):
            raise
        return str(alone(error))
