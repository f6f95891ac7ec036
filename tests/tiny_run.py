"""A whole tiny training run on real files, for tests: pictures, LLaVA JSON, two stages, LoRA."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from retinue.data import loader as data_loader
from retinue.data.dataset import open_dataset
from retinue.hub.save import save
from retinue.parallel.grid import ranks_of_launch
from retinue.train.context import RunResult
from retinue.train.evaluator import Answer, Evaluation
from retinue.train.run import run_stages
from retinue.train.spec import RunSpec
from tiny import picture, tiny_model

SAMPLES = 14


def write_data(root: Path) -> None:
    """data.json with pictures, every third sample text only."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(SAMPLES):
        row: dict[str, Any] = {"id": f"s{n}"}
        mark = ""
        if n % 3:
            picture(n).save(root / f"{n}.png")
            row["image"] = f"{n}.png"
            mark = "<image>\n"
        row["conversations"] = [
            {"from": "human", "value": mark + "what colour?" + "?" * (n % 4)},
            {"from": "gpt", "value": "red " * (1 + n % 3)},
        ]
        rows.append(row)
    (root / "data.json").write_text(json.dumps(rows))


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {},
        "seed": 3,
        "train": {
            "precision": "fp32",
            "stages": [
                {
                    "name": "align",
                    "trainable": {"connector.**": "full"},
                    "steps": 3,
                    "global_batch": 4,
                    "micro_batch": 2,
                    "optim": {"lr": 1e-2},
                    "schedule": {"kind": "constant"},
                },
                {
                    "name": "tune",
                    "trainable": {
                        "lm.**": {"lora": {"r": 2, "dropout": 0.2}},
                        "connector.**": {"full": {"lr": "x0.5"}},
                    },
                    "steps": 6,
                    "global_batch": 4,
                    "micro_batch": 2,
                    "optim": {"lr": 1e-2, "weight_decay": 0.1},
                    "schedule": {"kind": "cosine", "warmup": 0.2},
                },
            ],
            **changes.pop("train", {}),
        },
        "data": {
            "sources": [{"path": "data.json", "format": "llava", "media_root": "."}],
            "seed": 5,
            **changes.pop("data", {}),
        },
        "checkpoint": {"every": 2, "keep": 2},
        "report": {"sinks": ["jsonl"]},
        **changes,
    }


def answer(model: Any, processor: Any) -> Evaluation:
    """Not an evaluator of worth, but one that can be told apart."""
    assert not model.training
    shown = Answer(question="what <b>?", answer="red", reference="blue", pictures=[picture(1)])
    return Evaluation(metrics={"accuracy": 0.5}, answers=[shown])


def run(
    root: Path,
    folder: Path,
    *,
    save_model: Any = save,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> RunResult:
    """In every process of a launch, if there is one (see `tiny_ranks`)."""
    torch.set_num_threads(1)
    model, processor = tiny_model()
    spec = RunSpec.parse(recipe(root, **changes))
    return run_stages(
        spec,
        model=model.to(dtype),
        processor=processor,
        open_data=partial(open_dataset, processor=processor, root=root),
        folder=folder,
        save_model=save_model,
        evaluator=answer,
        ranks=ranks_of_launch(spec.parallel, torch.device("cpu")),
    )


def run_and_die(root: Path, folder: Path, at: int, while_saving: bool, number: int) -> None:
    """Send this process the signal `number` at micro-batch `at`, or within the save after it."""
    seen = 0
    stream = data_loader.Loader._stream

    def counted(self: Any, start: int, stop: int | None = None) -> Iterator[Any]:
        nonlocal seen
        for loaded in stream(self, start, stop):
            seen += 1
            if seen == at and not while_saving:
                os.kill(os.getpid(), number)
            yield loaded

    def torn(model: Any, processor: Any, place: Any) -> None:
        save(model, processor, place)
        if seen >= at and while_saving:
            os.kill(os.getpid(), number)

    data_loader.Loader._stream = counted  # type: ignore[method-assign]
    result = run(root, folder, save_model=torn)
    raise SystemExit(result.exit_code)


KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)
