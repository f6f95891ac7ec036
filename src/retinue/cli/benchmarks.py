"""`retinue eval PATH TASK...`: benchmarks by name, with a model or with saved answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.eval.questions import Question
    from retinue.eval.task import Task

Tasks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK",
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
JudgeUrl = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="URL",
        help="An OpenAI-compatible server that scores open answers (llava-bench, msvd, ...).",
    ),
]
JudgeModel = Annotated[
    str, typer.Option("--judge-model", metavar="NAME", help="The judge's name at --judge.")
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
    from retinue.core.errors import ConfigError, DataError
    from retinue.eval.questions import check_references
    from retinue.eval.task import find, load_task, questions_of

    made: list[Job] = []
    for given in dict.fromkeys(tasks):
        name, path = find(given, folders=folders)
        if name in [job.name for job in made]:
            raise ConfigError(f"two tasks are called {name!r}", where=given, fix="rename one file")
        task = load_task(path)
        folder = task.place(root, name)
        try:
            questions = questions_of(name, task, folder, limit=limit)
        except DataError as error:
            own = task.folder or name
            if folder != root:
                raise
            raise DataError(
                f"the files of {name!r} are not there",
                where=str(root / own),
                rule=f"nor in {root} itself; the first one wanted is {error.where}: {error.what}"
                + (f", {error.rule}" if error.rule else ""),
                fix=f"put them into {root / own} as they are published ({task.source}), or name "
                f"the folder above {own}/ with --tasks-root",
            ) from None
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
    judge: tuple[str, str] | None = None,
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
        if judge is not None and job.task.judge is not None:
            document = reviewed(job, document, url=judge[0], name=judge[1])
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


def reviewed(job: Job, document: dict[str, Any], *, url: str, name: str) -> dict[str, Any]:
    """The result with a judge's scores; rows and result are rewritten, reviews are kept beside."""
    from retinue.core.files import write_json
    from retinue.decode.rows import RowFile
    from retinue.eval.benchmark import with_benchmark
    from retinue.eval.endpoint import Endpoint
    from retinue.eval.judging import judged

    assert job.task.judge is not None
    how = job.task.judge
    server = Endpoint(
        url=url, model=name, max_new_tokens=how.max_new_tokens, temperature=how.temperature
    )
    file = RowFile(job.target.with_name(f"{rows_stem(job.target, document)}.rows.jsonl"))
    kept = RowFile(job.target.with_name(f"{job.target.stem}.reviews.jsonl"))
    note(f"{job.name}: {len(file.rows)} answers for {name}, {len(kept.rows)} reviews are there")
    rows = judged(
        file.rows,
        job.questions,
        ask=lambda samples: server(samples, None),
        kept=kept,
        how=how,
        judge=name,
    )
    file.rewrite(rows)
    settings = {**document["settings"], "judge": name}
    found = with_benchmark({**document, "settings": settings}, rows, name=job.name, task=job.task)
    for place in {job.target, job.target.parent / "run.json"}:
        write_json(place, found)
    return found


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
        rankings = {row["id"]: row["ranking"] for row in rows if "ranking" in row}
        body = job.task.submission_of(job.questions, texts, job.folder, rankings=rankings)
        with writing(place):
            place.write_bytes(body)
        note(f"to hand in: {place}")
    if page:
        place = job.target.with_suffix(".html")
        with writing(place):
            place.write_text(render_page(document, rows, job.questions), "utf-8")
        note(f"page: {place}")
