"""Where the answers to a benchmark come from: a model, a server, a file of saved ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from retinue.cli import budgets
from retinue.cli.benchmarks import Job, rows_stem
from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.decode.sampling import SamplingParams
    from retinue.types import Sample


def changed(context: typer.Context, params: SamplingParams) -> dict[str, Any]:
    """The decoding options that the user gave; they win over a task's own."""
    given = {
        name: getattr(params, name)
        for name in ("max_new_tokens", "temperature", "top_p", "stop", "seed")
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    }
    if given:
        said = ", ".join(f"{name} {value}" for name, value in given.items())
        note(f"decoding is changed from the tasks' own: {said}")
    return given


def from_model(
    write: Callable[..., dict[str, Any]],
    *,
    settings: dict[str, Any],
    changed: dict[str, Any],
    choices: budgets.Choices,
    every: bool = False,
) -> Callable[..., dict[str, Any]]:
    """`answer` of `run` with a model: `write` is scoring.write_result with the model given.

    choices: budgets of visual tokens; several, or `every`, are compared, and the task's figures are
    then those of the largest.
    """
    from retinue.core.errors import ConfigError
    from retinue.core.files import write_json
    from retinue.decode.sampling import SamplingParams

    def answer(job: Job, **options: Any) -> dict[str, Any]:
        own = {**job.task.decoding.model_dump(), **changed}
        ask = partial(
            write,
            job.questions,
            norm=job.task.rank and job.task.rank.norm,
            params=SamplingParams.parse(own, where=job.name),
            settings={
                **settings,
                "data": str(job.folder),
                "questions": len(job.questions),
                "task": job.task.pinned(),
                "changed": changed,
            },
        )
        if not every and len(choices) == 1:
            (budget,) = choices.values()
            return ask(job.target, budget=budget, **options)
        if not all(question.references for question in job.questions):
            raise ConfigError(
                "several budgets are compared where answers are public",
                where=job.name,
                fix="name one budget",
            )
        found = budgets.compare(
            choices,
            job.target,
            write=partial(ask, finish=options["finish"]),
            title=job.name,
            restart=options["restart"],
        )
        largest = job.target.with_name(f"{rows_stem(job.target, found)}.json")
        own_figures = json.loads(largest.read_text("utf-8"))["benchmark"]
        document = {**found, "benchmark": own_figures}
        for place in {job.target, job.target.parent / "run.json"}:
            write_json(place, document)
        return document

    return answer


def from_endpoint(
    url: str,
    name: str,
    *,
    workers: int,
    changed: dict[str, Any],
    skip: bool,
    shots: dict[str, Any] | None = None,
) -> Callable[..., dict[str, Any]]:
    """`answer` of `run` with a server's model; workers: requests at one time."""
    from retinue.cli.scoring import write_answers
    from retinue.core.errors import ConfigError
    from retinue.eval.endpoint import Endpoint

    unknown = [key for key in changed if key in ("top_p", "seed")]
    if unknown:
        raise ConfigError(f"{unknown[0]} is not sent to a server", fix="leave it out")

    def answer(job: Job, **options: Any) -> dict[str, Any]:
        own = {**job.task.decoding.model_dump(), **changed}
        server = Endpoint(url=url, model=name, workers=workers, **own)
        settings = {
            "endpoint": url,
            "model": name,
            "params": own,
            "data": str(job.folder),
            "questions": len(job.questions),
            "task": job.task.pinned(),
            "changed": changed,
            "shots": shots,
        }
        return write_answers(
            lambda samples, refused: server(samples, refused if skip else None),
            job.questions,
            job.target,
            settings=settings,
            **options,
        )

    return answer


def from_file(path: Path) -> Callable[..., dict[str, Any]]:
    """`answer` of `run` with a file of saved predictions. Raises DataError for one that is none."""
    from retinue.cli.answering import identity
    from retinue.cli.scoring import write_answers
    from retinue.core.errors import DataError
    from retinue.eval.predictions import from_saved, read_predictions

    saved = read_predictions(path)
    if saved.broken:
        note(f"{path}: {saved.broken} lines are no JSON and are left out")

    def answer(job: Job, **options: Any) -> dict[str, Any]:
        found = [saved.of(question, n) is not None for n, question in enumerate(job.questions)]
        if not any(found):
            raise DataError(
                f"no answer to any of {len(found)} questions",
                where=str(path),
                rule=f"ids such as {job.questions[0].sample.id!r}; the file has "
                f"{next(iter(saved.texts), None)!r:.80}",
            )

        def predict(
            samples: Iterable[Sample], refused: Callable[[int, Sample, Exception], None]
        ) -> Iterator[Any]:
            asked = list(samples)
            first = len(job.questions) - len(asked)

            def missing(number: int) -> None:
                refused(number, asked[number], DataError("no saved answer", where=str(path)))

            return from_saved(saved, job.questions, missing, first=first)(asked)

        settings = {
            "predictions": str(path),
            "saved": identity(path),
            "task": job.task.pinned(),
            "data": str(job.folder),
            "questions": len(job.questions),
        }
        note(f"{sum(found)} of {len(found)} questions have a saved answer")
        return write_answers(predict, job.questions, job.target, settings=settings, **options)

    return answer
