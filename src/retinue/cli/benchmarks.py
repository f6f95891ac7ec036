"""`retinue eval PATH TASK...`: benchmarks by name, with a model or with saved answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import budgets
from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.questions import Question
    from retinue.eval.task import Task
    from retinue.types import Sample

Tasks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK]...",
        help="Benchmarks (`retinue ls benchmarks`) or YAML files of your own.",
        show_default=False,
    ),
]
TasksRoot = Annotated[
    Path,
    typer.Option(
        "--tasks-root", help="Where the benchmarks' files lie, a folder for each task's name."
    ),
]
TasksFrom = Annotated[
    list[Path] | None,
    typer.Option("--tasks-from", help="A folder of task files of your own; may repeat."),
]
PredictionsFile = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        help="Saved answers in the place of a model: JSONL with question_id and text, or others "
        "(docs/evaluation.md). PATH is then left out.",
    ),
]
EndpointUrl = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="An OpenAI-compatible server in the place of a model, up to /v1; key in "
        "OPENAI_API_KEY. PATH is then the model's name there.",
    ),
]
NoPage = Annotated[bool, typer.Option("--no-page", help="Write no page with pictures.")]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task with its questions, and where its result goes."""

    name: str
    task: Task
    folder: Path
    questions: list[Question]
    target: Path


def words(
    path: str, tasks: list[str] | None, *, data: Path | None, predictions: Path | None
) -> tuple[str, list[str]]:
    """(PATH, tasks) of the arguments; with saved answers all of them are tasks.

    Raises ConfigError for a command that asks nothing or two things.
    """
    from retinue.core.errors import ConfigError

    names = list(tasks or ())
    if predictions is not None:
        path, names = "", [word for word in (path, *names) if word]
    elif not path:
        raise ConfigError("no model", rule="PATH comes first", fix="name one, or --predictions")
    if (data is None) == (not names) or (data is not None and predictions is not None):
        raise ConfigError(
            "nothing to ask" if data is None else "two kinds of questions at once",
            rule="either benchmarks by name, or --data FILE with a model",
            fix="`retinue ls benchmarks` lists them",
        )
    return path, names


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


def rows_stem(target: Path, document: dict[str, Any]) -> str:
    """Of the file of a result's rows; of several budgets, the largest's."""
    if "comparison" not in document:
        return target.stem
    largest = max(int(point["choice"]) for point in document["comparison"]["budgets"])
    return f"{target.stem}.{largest}"


def jobs(
    tasks: Sequence[str], *, root: Path, folders: Sequence[Path], limit: int | None, out: Path
) -> list[Job]:
    """What the names stand for. One task's result is `out`; several get files beside it."""
    from retinue.core.errors import ConfigError
    from retinue.eval.questions import check_references
    from retinue.eval.task import find, load_task, questions_of

    made: list[Job] = []
    for given in dict.fromkeys(tasks):
        name, path = find(given, folders=folders)
        if name in [job.name for job in made]:
            raise ConfigError(f"two tasks are called {name!r}", where=given, fix="rename one file")
        task = load_task(path)
        folder = task.place(root, name)
        questions = questions_of(name, task, folder, limit=limit)
        check_references(questions)
        target = out if len(tasks) == 1 else out.with_name(f"{out.stem}.{name}.json")
        made.append(Job(name=name, task=task, folder=folder, questions=questions, target=target))
    return made


def run(
    made: Sequence[Job],
    out: Path,
    *,
    answer: Callable[..., dict[str, Any]],
    restart: bool,
    page: bool,
) -> list[dict[str, Any]]:
    """Every job through answer(job, restart=, settled=, finish=); tables, pages, submissions.

    With several tasks, those that an interrupted run finished are not asked again, and `out` holds
    all results.
    """
    from retinue.core.files import versions, write_json, writing
    from retinue.core.log import print_table
    from retinue.eval import benchmark, oracle

    marker = out.with_name(f"{out.stem}.unfinished-tasks.json")
    several = len(made) > 1
    going_on = marker.exists() and not restart
    if several:
        with writing(marker):
            marker.parent.mkdir(parents=True, exist_ok=True)
        write_json(marker, {"tasks": [job.name for job in made]})
    documents = []
    for job in made:
        note(f"{job.name}: {len(job.questions)} questions from {job.folder}")
        settled = None
        if several and going_on and job.target.exists():
            settled = json.loads(job.target.read_text("utf-8"))
        document = answer(
            job,
            restart=restart or (several and not going_on),
            settled=settled,
            finish=lambda document, rows, job=job: benchmark.with_benchmark(
                document, rows, name=job.name, task=job.task
            ),
        )
        documents.append(document)
        after(job, document, page=page)
    if several:
        joined = {
            "status": "done",
            "tasks": {job.name: document for job, document in zip(made, documents, strict=True)},
            "files": [
                f"{rows_stem(job.target, document)}.rows.jsonl"
                for job, document in zip(made, documents, strict=True)
            ],
            "versions": versions(),
        }
        for place in {out, out.parent / "run.json"}:
            write_json(place, joined)
        marker.unlink()
    header, lines = benchmark.table(documents)
    print_table(lines, header=header)
    for job, document in zip(made, documents, strict=True):
        if "comparison" in document:
            note(f"{job.name}, visual tokens:")
            header, lines = oracle.table(document["comparison"])
            print_table(lines, header=header)
    header, lines = benchmark.reference_table(documents)
    if lines:
        print_table(lines, header=header)
    return documents


def after(job: Job, document: dict[str, Any], *, page: bool) -> None:
    """The submission and the page of a finished job."""
    from retinue.core.files import writing
    from retinue.decode.rows import RowFile
    from retinue.eval.page import render_page

    stem = rows_stem(job.target, document)
    rows = RowFile(job.target.with_name(f"{stem}.rows.jsonl")).rows
    if job.task.submission is not None:
        texts = {row["id"]: row["text"] for row in rows}
        place = job.target.with_name(f"{job.target.stem}.{job.task.submission.file}")
        body = job.task.submission_of(job.questions, texts, job.folder)
        with writing(place):
            place.write_bytes(body)
        note(f"to hand in: {place}")
    if page:
        place = job.target.with_suffix(".html")
        with writing(place):
            place.write_text(render_page(document, rows, job.questions), "utf-8")
        note(f"page: {place}")


def from_endpoint(
    url: str, name: str, *, workers: int, changed: dict[str, Any], skip: bool
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
            rest = job.questions[len(job.questions) - len(asked) :]

            def missing(number: int) -> None:
                refused(number, asked[number], DataError("no saved answer", where=str(path)))

            return from_saved(saved, rest, missing)(asked)

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
