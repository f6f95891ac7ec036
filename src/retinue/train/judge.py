"""Questions asked while a run trains: their figures, the best model so far, an early page.

<run>/evaluation/step-00000200.json       the result, as `retinue eval` writes it
<run>/evaluation/step-00000200.rows.jsonl every question with its answer and score
<run>/best/                               a complete model folder, and best.json: step, stage, score
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import torch

from retinue.core.errors import ConfigError
from retinue.core.files import write_json
from retinue.core.log import get_logger
from retinue.hub.files import whole_folder
from retinue.train.context import Run
from retinue.train.evaluator import Evaluation, Evaluator, SaveModel
from retinue.train.finish import write_page
from retinue.train.record import writing

FOLDER, BEST, FACTS = "evaluation", "best", "best.json"


class Judge:
    """Asks the model at the end of some updates; keeps the model with the highest score.

    ask: called on the first process with the model in evaluation mode; its metric that
    `train.evaluate.metric` names decides. Training goes on from the same state as without it.
    """

    def __init__(self, run: Run, *, ask: Evaluator, save_model: SaveModel) -> None:
        self.run, self.ask, self.save_model = run, ask, save_model
        spec = run.spec.train.evaluate
        assert spec is not None
        self.spec = spec
        self.folder = run.folder / BEST

    def begin(self, *, step: int) -> None:
        """Forget a best model that this run did not make: one of an earlier run in its folder."""
        if step == 0 and self.run.ranks.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.run.folder / FOLDER, ignore_errors=True)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """{step, stage, metric, score} of the best model, None before there is one."""
        try:
            found: dict[str, Any] = json.loads((self.folder / FACTS).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def __call__(self, stage: str) -> None:
        """Ask, log, keep the model if it is the best, write the page. All processes take part."""
        run = self.run
        with run.ranks.plain(run.model):
            if run.ranks.rank == 0:
                modes = {module: module.training for module in run.model.modules()}
                run.model.eval()
                with torch.no_grad():
                    found = self.ask(run.model, run.processor)
                self.note(stage, found)
                for module, training in modes.items():
                    module.training = training
        run.ranks.wait()

    def note(self, stage: str, found: Evaluation) -> None:
        """Files, rows of the sinks and the best model, from an evaluation of this update."""
        run, metric = self.run, self.spec.metric
        if metric not in found.metrics:
            raise ConfigError(
                f"the evaluation has no metric {metric!r}",
                where="train.evaluate.metric",
                rule=f"it has {', '.join(found.metrics)}",
            )
        score = float(found.metrics[metric])
        stem = run.folder / FOLDER / f"step-{run.step:08d}"
        with writing(run.folder):
            stem.parent.mkdir(parents=True, exist_ok=True)
            write_json(stem.with_suffix(".json"), found.document)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
            stem.with_suffix(".rows.jsonl").write_text("".join(lines), "utf-8")
        row = {"kind": "evaluation", "stage": stage, "step": run.step}
        run.say({**row, **{name: float(value) for name, value in found.metrics.items()}})
        before = self.best
        if self.spec.best and (before is None or score > before["score"]):
            with whole_folder(self.folder) as part:
                self.save_model(run.model, run.processor, part)
                facts = {"step": run.step, "stage": stage, "metric": metric, "score": score}
                write_json(part / FACTS, facts)
            get_logger().info(f"best so far: {metric} {score:.4f} at update {run.step}")
        if run.spec.report.page:
            write_page(run, {metric: score, "updates": run.step}, found)
