"""Answers to questions, judged and kept: the result file, its rows, and going on with both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retinue.cli import answering as opt
from retinue.cli import budgets

if TYPE_CHECKING:
    from retinue.decode.budget import Budget
    from retinue.decode.loop import Completion, Runner
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.questions import Question
    from retinue.eval.runner import Answer
    from retinue.processor import Processor
    from retinue.types import Sample

Rows = list[dict[str, Any]]
Finish = Callable[[dict[str, Any], Rows], dict[str, Any]]
Refused = Callable[[int, "Sample", Exception], None]
Backend = Callable[[Iterable["Sample"], Refused], "Iterator[Answer]"]


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
    norm: Literal["mean", "sum"] | None = None,
    continuous: bool = False,
    clock: budgets.Clock | None = None,
    settled: dict[str, Any] | None = None,
    finish: Finish | None = None,
) -> dict[str, Any]:
    """Evaluate and write `target`, run.json and the rows beside it; returns the document.

    budget: as in decode; rows then say how many visual tokens were used. norm: answers are not
    written but chosen by likelihood (decode.score). continuous: they are written by the serving
    engine. clock: measures the answers. settled: a
    document that is returned as it is if it was made with these settings.
    finish(document, rows): the document that is written.

    The rows of a run that was interrupted are kept and not asked again. Raises DataError for a row
    that cannot be used unless `skip`, and where every row was skipped; ConfigError if the rows
    there were made with other settings.
    """
    from retinue.cli.continuous import answers as from_engine
    from retinue.core.errors import ConfigError
    from retinue.decode.auto import AutoBudget
    from retinue.decode.offline import generate
    from retinue.decode.score import Ranked, rank
    from retinue.eval.results import mean

    if norm is not None and isinstance(budget, AutoBudget):
        raise ConfigError(
            "auto chooses visual tokens by how sure a written answer is",
            where="--visual-tokens",
            rule="this task ranks given answers",
            fix="name numbers",
        )

    settings = {
        **(settings or {}),
        **({"continuous": True} if continuous else {}),
        "params": params.model_dump(mode="json"),
        "template": processor.spec.template,
        "visual_tokens": budgets.setting(budget),
    }

    def predict(samples: Iterable[Sample], refused: Refused) -> Iterator[Completion | Ranked]:
        told = refused if skip else None
        if norm is not None:
            assert not isinstance(budget, AutoBudget)
            ranked = rank(
                model,
                processor,
                samples,
                norm=norm,
                batch_size=batch_size,
                skipped=told,
                budget=budget,
            )
            return ranked if clock is None else clock.watch(ranked)
        if continuous and not isinstance(budget, AutoBudget):
            flowing = from_engine(
                model,
                processor,
                samples,
                params=params,
                rows=batch_size,
                skipped=told,
                budget=budget,
                logprobs=budget is not None,
            )
            return flowing if clock is None else clock.watch(flowing)
        answers = generate(
            model,
            processor,
            samples,
            params=params,
            batch_size=batch_size,
            skipped=told,
            budget=budget,
            logprobs=budget is not None,
        )
        return answers if clock is None else clock.watch(answers)

    def more(answer: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"ranking": answer.ranking()} if isinstance(answer, Ranked) else {}
        if budget is not None:
            logprobs = [round(value, 4) for value in answer.logprobs]
            found |= {**budgets.row_fields(answer), "logprobs": logprobs}
        return found

    def counted(document: dict[str, Any], made: Rows) -> dict[str, Any]:
        if budget is not None:
            document["visual_tokens"] = {
                "answers": mean([row["visual_tokens_total"] for row in made]),
                "spent": mean([row["visual_tokens_spent"] for row in made]),
            }
        return document if finish is None else finish(document, made)

    return write_answers(
        predict,
        questions,
        target,
        settings=settings,
        restart=restart,
        with_baseline=with_baseline,
        settled=settled,
        more=more,
        finish=counted,
    )


def write_answers(
    predict: Backend,
    questions: Sequence[Question],
    target: Path,
    *,
    settings: dict[str, Any],
    restart: bool = False,
    with_baseline: bool = False,
    settled: dict[str, Any] | None = None,
    more: Callable[[Any], dict[str, Any]] | None = None,
    finish: Finish | None = None,
) -> dict[str, Any]:
    """As write_result, with answers from anywhere: predict(samples, refused) yields them in order.

    refused(number, sample, error): told of a sample without an answer.
    """
    from retinue.core.errors import DataError
    from retinue.core.files import write_json
    from retinue.decode.rows import RowFile
    from retinue.eval.results import result
    from retinue.eval.runner import evaluate as ask

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

    with opt.progress("eval", total=len(questions), done=first) as shown:
        made = ask(
            lambda samples: predict(samples, refused),
            questions,
            rows=rows,
            skipped=known,
            progress=shown,
            more=more,
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
    if finish is not None:
        document = finish(document, made)
    for path in {target, target.parent / "run.json"}:
        write_json(path, document)
    record.unlink()
    skips.report()
    return document


def rows_path(target: Path) -> Path:
    """`result.json` -> `result.rows.jsonl`."""
    return target.with_name(f"{target.stem}.rows.jsonl")
