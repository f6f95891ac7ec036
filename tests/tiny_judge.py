"""tiny_run's training with a judge whose scores are told, for tests of evaluation on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tiny_run
from retinue.data import loader as data_loader
from retinue.train.context import RunResult
from retinue.train.evaluator import Evaluation
from tiny_run import KILL

ASKED = {"data": "unused.jsonl", "every": 2}


class Scores:
    """Says a score for each round, and remembers the weights that it saw."""

    def __init__(self, scores):
        self.scores, self.seen = iter(scores), []

    def __call__(self, model, processor):
        assert not model.training
        weight = model.connector.state_dict()
        self.seen.append(float(next(iter(weight.values())).float().sum()))
        score = next(self.scores)
        return Evaluation(metrics={"score": score}, document={"score": score}, rows=[{"id": "q"}])


def train(root: Path, folder: Path, judge: Any, **changes: Any) -> RunResult:
    """tiny_run's recipe with a judge in the place of a file of questions."""
    made = tiny_run.run_stages
    try:
        tiny_run.run_stages = lambda spec, **options: made(spec, judge=judge, **options)
        return tiny_run.run(root, folder, train={"evaluate": {**ASKED, **changes}})
    finally:
        tiny_run.run_stages = made


def killed(root: Path, folder: Path) -> None:
    """Dies at the first micro-batch of update 6: the last round was at 5, a checkpoint at 5."""
    seen, stream = 0, data_loader.Loader._stream

    def counted(self, start, stop=None):
        nonlocal seen
        for loaded in stream(self, start, stop):
            seen += 1
            if seen == 13:
                os.kill(os.getpid(), KILL)
            yield loaded

    data_loader.Loader._stream = counted
    train(root, folder, Scores([0.2, 0.9, 0.5, 0.3, 0.3]))
