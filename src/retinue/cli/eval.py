"""`retinue eval PATH --data rows.jsonl`: answers judged by a scorer, figures per task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import answering as opt
from retinue.cli import budgets
from retinue.cli.common import (
    Device,
    Quant,
    QuantEncoders,
    QuantHead,
    examples,
    note,
    pairs,
    quant_setting,
    verb,
)

if TYPE_CHECKING:
    from retinue.decode.budget import Budget
    from retinue.decode.loop import Completion, Runner
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.questions import Question
    from retinue.processor import Processor
    from retinue.types import Sample

app = verb()


@app.command(
    "eval",
    epilog=examples(
        "retinue eval runs/quickstart/model --data runs/quickstart/data/test.jsonl --baseline",
        "retinue eval runs/mine/model --data mine.jsonl --scorer contains --json mine/result.json",
        "retinue eval runs/m3/model --data test.jsonl --visual-tokens 1,9,36,144,576,auto --oracle",
        "retinue eval runs/m3/model --data other.jsonl --fit-auto runs/m3/model",
    ),
)
def evaluate(
    path: opt.ModelPath,
    data: Annotated[
        Path, typer.Option(help="Rows {id, messages, answer or references[, task, scorer]}.")
    ],
    scorer: Annotated[
        str | None, typer.Option(help="For all rows (`retinue ls scorers`); default: each row's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--json", help="Result file; run.json and the rows are written beside it."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Show what the best constant answer scores.")
    ] = False,
    failures: Annotated[int, typer.Option(min=0, help="Wrong answers to show.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    visual_tokens: budgets.VisualTokenList = None,
    auto_threshold: budgets.AutoThreshold = None,
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="Compare budgets with the best choice for every question."),
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="With several budgets: another model's result on the same rows, to be drawn and "
            "subtracted; may repeat.",
        ),
    ] = None,
    fit_auto: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Fit the automatic budget on these rows; a model's folder keeps it for itself.",
        ),
    ] = None,
    fit_tolerance: Annotated[
        float, typer.Option(min=0, help="Score that --fit-auto may lose to the full budget.")
    ] = 0.005,
    max_new_tokens: opt.MaxNewTokens = 64,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    stop: opt.Stop = None,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 16,
    media_root: opt.MediaRoot = None,
    on_error: opt.OnError = "error",
    restart: opt.Restart = False,
    template: opt.Template = None,
    video_as: opt.VideoAs = None,
    adapter: opt.Adapters = None,
    base: opt.Base = None,
    device: Device = "auto",
    dtype: opt.Dtype = "auto",
    quant: Quant = None,
    quant_encoders: QuantEncoders = False,
    quant_head: QuantHead = False,
) -> None:
    """Score a model on a JSONL file; run again to go on where it was interrupted."""
    from retinue.core.errors import RetinueError
    from retinue.core.files import write_json
    from retinue.core.log import print_table
    from retinue.core.paths import run_dir
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.questions import check_references, read_questions
    from retinue.eval.results import table

    target = out or run_dir(f"eval-{data.stem}") / "result.json"
    try:
        questions = read_questions(data, scorer=scorer, media_root=media_root, limit=limit)
        check_references(questions)
        params = SamplingParams.parse(
            {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "stop": tuple(stop or ()),
                "seed": seed,
            },
            where="eval",
        )
        model, processor = opt.load_model(
            path,
            device=device,
            dtype=dtype,
            template=template,
            adapters=adapter,
            base=base,
            quant=quant,
            quant_encoders=quant_encoders,
            quant_head=quant_head,
            video=video_as,
        )
        every = oracle or fit_auto is not None
        choices = budgets.several(
            processor, visual_tokens, path=path, threshold=auto_threshold, every=every
        )
        write = partial(
            write_result,
            model,
            processor,
            questions,
            params=params,
            batch_size=batch_size,
            skip=on_error == "skip",
            with_baseline=baseline,
            settings={
                "model": path,
                "weights": opt.identity(path),
                "adapters": adapter or [],
                "base": base,
                "video": video_as,
                "quant": quant_setting(quant, encoders=quant_encoders, head=quant_head),
                "data": str(data),
                "rows": opt.identity(data),
                "scorer": scorer,
                "limit": limit,
            },
        )
        if every or len(choices) > 1:
            document = budgets.compare(
                choices,
                target,
                write=write,
                title=data.stem,
                restart=restart,
                beside=pairs(beside, option="--beside"),
            )
        else:
            (budget,) = choices.values()
            document = write(target, restart=restart, budget=budget)
    except RetinueError as error:
        with suppress(OSError, RetinueError):  # a full disk is told as what it stopped
            target.parent.mkdir(parents=True, exist_ok=True)
            write_json(target.parent / "run.json", {"status": "failed", "error": str(error)})
        raise
    header, lines = table(document)
    print_table(lines, header=header)
    if "comparison" in document:
        from retinue.eval import oracle as curve

        header, lines = curve.table(document["comparison"], oracle=oracle)
        print_table(lines, header=header)
        for name, other in document["comparison"].get("beside", {}).items():
            typer.echo(f"against {name}, question by question:")
            header, lines = curve.difference_table(other["differences"])
            print_table(lines, header=header)
        if fit_auto is not None:
            fixed = [name for name in choices if name != curve.AUTO]
            budgets.fit(target, fixed, fit_auto, tolerance=fit_tolerance)
        note(f"result in {target}, the curve in {target.with_name(target.stem)}.curve.png and .csv")
        return
    if "visual_tokens" in document:
        own = document["visual_tokens"]
        note(f"visual tokens a question: {own['answers']:.1f}, of all tries {own['spent']:.1f}")
    show_failures(target, failures)
    note(f"result in {target}, rows in {rows_path(target)}")


def write_result(
    model: Runner,
    processor: Processor,
    questions: Sequence[Question],
    target: Path,
    *,
    params: SamplingParams,
    batch_size: int = 16,
    skip: bool = False,
    restart: bool = False,
    with_baseline: bool = False,
    settings: dict[str, Any] | None = None,
    budget: Budget = None,
    clock: budgets.Clock | None = None,
    settled: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate and write `target`, run.json and the rows beside it; returns the document.

    budget: as in decode; rows then say how many visual tokens were used. clock: measures the
    answers. settled: a document that is returned as it is if it was made with these settings.

    The rows of a run that was interrupted are kept and not asked again. Raises DataError for a row
    that cannot be used unless `skip`, and where every row was skipped; ConfigError if the rows
    there were made with other settings.
    """
    from retinue.core.errors import DataError
    from retinue.core.files import write_json
    from retinue.decode.offline import generate
    from retinue.decode.rows import RowFile
    from retinue.eval.results import mean, result
    from retinue.eval.runner import evaluate as ask

    settings = {
        **(settings or {}),
        "params": params.model_dump(mode="json"),
        "template": processor.spec.template,
        "visual_tokens": budgets.setting(budget),
    }
    if settled is not None and settled["settings"] == json.loads(json.dumps(settings)):
        return settled
    record = target.with_name(f"{target.stem}.unfinished.json")
    restart = restart or not record.exists()
    rows = RowFile(rows_path(target), restart=restart)
    skips = opt.Skips(target.with_name(f"{target.stem}.errors.jsonl"), restart=restart)
    opt.check_settings(record, settings, rows=rows)
    write_json(record, {"settings": settings})
    known = skips.numbers
    first = rows.settled((item.sample.id for item in questions), skipped=known)
    skips.forget_from(first)

    def refused(number: int, sample: Sample, error: Exception) -> None:
        skips.add(first + number, sample.id, error)

    def predict(samples: Iterable[Sample]) -> Iterator[Completion]:
        answers = generate(
            model,
            processor,
            samples,
            params=params,
            batch_size=batch_size,
            skipped=refused if skip else None,
            budget=budget,
            logprobs=budget is not None,
        )
        return answers if clock is None else clock.watch(answers)

    def more(answer: Any) -> dict[str, Any]:
        logprobs = [round(value, 4) for value in answer.logprobs]
        return {**budgets.row_fields(answer), "logprobs": logprobs}

    with opt.progress("eval", total=len(questions), done=first) as shown:
        made = ask(
            predict,
            questions,
            rows=rows,
            skipped=known,
            progress=shown,
            more=None if budget is None else more,
        )
    if not made:
        raise DataError("no row could be used", where=str(skips.file.path), rule="see that list")
    document = result(
        made,
        questions=questions,
        settings=settings,
        skipped=len(skips.rows),
        with_baseline=with_baseline,
    )
    if budget is not None:
        document["visual_tokens"] = {
            "answers": mean([row["visual_tokens_total"] for row in made]),
            "spent": mean([row["visual_tokens_spent"] for row in made]),
        }
    for path in {target, target.parent / "run.json"}:
        write_json(path, document)
    record.unlink()
    skips.report()
    return document


def rows_path(target: Path) -> Path:
    """`result.json` -> `result.rows.jsonl`."""
    return target.with_name(f"{target.stem}.rows.jsonl")


def show_failures(target: Path, count: int) -> None:
    """Print a few wrong answers with what was expected."""
    from retinue.decode.rows import RowFile
    from retinue.eval.results import failures

    for row in failures(RowFile(rows_path(target)).rows, count=count):
        expected = " | ".join(row["references"])
        line = f"{row['id']}: {row['question']!r:.100} -> {row['text']!r:.100}"
        typer.echo(f"{line}, expected {expected!r:.100} ({row['scorer']} {row['score']:.2f})")
