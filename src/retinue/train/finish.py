"""The end of a run: the finished model, its evaluation, run.json and the page."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from retinue.core.log import get_logger
from retinue.hub.files import whole_folder
from retinue.model.freeze import plain
from retinue.train.context import Run, RunResult
from retinue.train.evaluator import Evaluation, Evaluator, SaveModel
from retinue.train.page import render_page
from retinue.train.record import write_run, writing


def finish(
    run: Run,
    *,
    save_model: SaveModel,
    evaluator: Evaluator | None,
    dtypes: Mapping[str, torch.dtype],
) -> RunResult:
    """Final model, evaluation, run.json and page; after a signal only run.json."""
    stopped, place = run.stop.signal, run.folder / "model"
    metrics = _metrics(run.rows)
    if stopped is not None:
        _record(run, metrics, status=f"stopped by {signal.Signals(stopped).name}")
        return RunResult(folder=run.folder, model=None, metrics=metrics, stopped=stopped)
    for name, parameter in run.model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(plain(name), parameter.dtype))
    run.model.eval()
    if run.ranks.rank == 0:
        with whole_folder(place) as part:
            save_model(run.model, run.processor, part)
        if run.ranks.device is not None:
            run.model.to(run.ranks.device)
    evaluation = Evaluation()
    if evaluator is not None and run.ranks.rank == 0:
        evaluation = evaluator(run.model, run.processor)
        metrics |= evaluation.metrics
    _record(run, metrics, status="done")
    if run.ranks.rank == 0 and run.spec.report.page:
        write_page(run, metrics, evaluation)
    return RunResult(folder=run.folder, model=place, metrics=metrics)


def _record(run: Run, metrics: Mapping[str, Any], *, status: str) -> None:
    if run.ranks.rank == 0:
        counts = {"updates": run.step, "skipped": len(run.skipped)}
        with writing(run.folder):
            write_run(run.folder, status=status, metrics=metrics, counts=counts, stages=run.counts)


def _metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Last losses and scores of a run."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["kind"] == "evaluation":
            found |= {k: v for k, v in row.items() if k not in ("kind", "stage", "step")}
        else:
            found["loss" if row["kind"] == "train" else "validation_loss"] = row["loss"]
    return found


def write_page(run: Run, metrics: Mapping[str, Any], evaluation: Evaluation) -> None:
    """report.html, as far as the run has come."""
    recipe = yaml.safe_dump(run.spec.model_dump(mode="json"), sort_keys=False)
    page = render_page(
        title=run.folder.name,
        rows=run.rows,
        tables=run.tables,
        metrics=metrics,
        answers=evaluation.answers,
        skipped=run.skipped,
        recipe=recipe,
    )
    with writing(run.folder):
        (run.folder / "report.html").write_text(page, "utf-8")
    get_logger().info(f"report: {run.folder / 'report.html'}")
