"""`retinue eval PATH --data rows.jsonl`: answers judged by a scorer, figures per task."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli import answering as opt
from retinue.cli import backends, benchmarks, budgets, fewshot
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
from retinue.cli.scoring import rows_path, write_result

app = verb()


@app.command(
    "eval",
    epilog=examples(
        "retinue eval runs/quickstart/model --data runs/quickstart/data/test.jsonl --baseline",
        "retinue eval runs/mine/model --data mine.jsonl --scorer contains --json mine/result.json",
        "retinue eval runs/m3/model --data test.jsonl --visual-tokens 1,9,36,144,576,auto --oracle",
        "retinue eval runs/m3/model --data other.jsonl --fit-auto runs/m3/model",
        "retinue eval runs/mine/model pope textvqa --tasks-root data/eval --json mine/result.json",
        "retinue eval runs/mine/model --data q.jsonl --shots 4 --shots-from train.json",
        "retinue eval --predictions answers.jsonl pope --tasks-root data/eval",
        "retinue eval served-name pope --tasks-root data/eval --endpoint http://localhost:8000/v1",
    ),
)
def evaluate(
    context: typer.Context,
    path: opt.ModelPath = "",
    tasks: benchmarks.Tasks = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows {id, messages, answer or references[, task, scorer]}."),
    ] = None,
    tasks_root: benchmarks.TasksRoot = Path("."),
    tasks_from: benchmarks.TasksFrom = None,
    predictions: benchmarks.PredictionsFile = None,
    endpoint: benchmarks.EndpointUrl = None,
    judge: benchmarks.JudgeUrl = None,
    judge_model: benchmarks.JudgeModel = "gpt-4",
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
    no_page: benchmarks.NoPage = False,
    failures: Annotated[int, typer.Option(min=0, help="Wrong answers to show.")] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    shots: fewshot.Shots = None,
    shots_from: fewshot.ShotsFrom = None,
    select: fewshot.Select = "random",
    text_shots: fewshot.TextShots = 0,
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
    continuous: Annotated[
        bool,
        typer.Option(
            "--continuous",
            help="Decode through the serving engine: rows join and leave at every step; pictures "
            "that several questions share are read once.",
        ),
    ] = False,
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
    """Score a model on benchmarks or a JSONL file; run again to go on where it was interrupted."""
    from retinue.core.errors import ConfigError, RetinueError
    from retinue.core.files import write_json
    from retinue.core.log import print_table
    from retinue.core.paths import run_dir
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.questions import check_references, read_questions
    from retinue.eval.results import table

    path, names = benchmarks.words(path, tasks, data=data, predictions=predictions)
    few = fewshot.FewShot(
        shots=shots, source=shots_from, select=select, text_shots=text_shots, seed=seed
    )
    few.check(saved=predictions is not None, tasks=bool(names))
    title = data.stem if data is not None else "-".join(Path(name).stem for name in names)
    target = out or run_dir(f"eval-{title}") / "result.json"
    try:
        made = benchmarks.jobs(
            names, root=tasks_root, folders=tasks_from or (), limit=limit, out=target
        )
        finish = partial(
            benchmarks.run,
            made,
            target,
            restart=restart,
            page=not no_page,
            judge=None if judge is None else (judge, judge_model),
        )
        if predictions is not None:
            saved = backends.from_file(predictions)
            finish(answer=saved)
            note(f"result in {target}")
            return
        questions = []
        if endpoint is not None and data is not None:
            raise ConfigError("--data has no --endpoint", fix="make the rows a task (YAML)")
        if data is not None:
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
        if endpoint is not None:
            made[:] = [replace(job, questions=few.put(job.questions, job=job)) for job in made]
            server = backends.from_endpoint(
                endpoint,
                path,
                workers=batch_size,
                changed=backends.changed(context, params),
                skip=on_error == "skip",
                shots=few.setting,
            )
            finish(answer=server)
            note(f"result in {target}")
            return
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
        put = partial(few.put, model=model, processor=processor, path=path)
        made[:] = [replace(job, questions=put(job.questions, job=job)) for job in made]
        questions = put(questions, media_root=media_root)
        every = oracle or fit_auto is not None
        choices = budgets.several(
            processor, visual_tokens, path=path, threshold=auto_threshold, every=every
        )
        settings = {
            "model": path,
            "weights": opt.identity(path),
            "adapters": adapter or [],
            "base": base,
            "video": video_as,
            "quant": quant_setting(quant, encoders=quant_encoders, head=quant_head),
            "scorer": scorer,
            "limit": limit,
            "shots": few.setting,
        }
        write = partial(
            write_result,
            model,
            processor,
            batch_size=batch_size,
            continuous=continuous,
            skip=on_error == "skip",
            with_baseline=baseline,
        )
        if data is None:
            if fit_auto is not None or beside:
                raise ConfigError("--fit-auto and --beside are for --data", fix="leave them out")
            ask = backends.from_model(
                write,
                settings=settings,
                changed=backends.changed(context, params),
                choices=choices,
                every=every,
            )
            finish(answer=ask)
            note(f"result in {target}")
            return
        write = partial(
            write,
            questions,
            params=params,
            settings={**settings, "data": str(data), "rows": opt.identity(data)},
        )
        if every or len(choices) > 1:
            document = budgets.compare(
                choices,
                target,
                write=write,
                title=title,
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


def show_failures(target: Path, count: int) -> None:
    """Print a few wrong answers with what was expected."""
    from retinue.decode.rows import RowFile
    from retinue.eval.results import failures

    for row in failures(RowFile(rows_path(target)).rows, count=count):
        expected = " | ".join(row["references"])
        line = f"{row['id']}: {row['question']!r:.100} -> {row['text']!r:.100}"
        typer.echo(f"{line}, expected {expected!r:.100} ({row['scorer']} {row['score']:.2f})")
