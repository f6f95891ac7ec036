"""`retinue generate` over a config of data sets: a result file for each, and their summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.decode.budget import Budget
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.instruct import Record
    from retinue.processor import Processor


def write_predictions(
    model: Any,
    processor: Processor,
    config: Path,
    folder: Path,
    *,
    params: SamplingParams,
    batch_size: int = 8,
    restart: bool = False,
    budget: Budget = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, int]:
    """Answer every record of a config's data sets into `folder`; returns how many of each.

    Run again it goes on where it was interrupted. Raises DataError for a record that cannot be
    used, ConfigError if what is there was made with other settings.
    """
    from retinue.cli import answering as opt
    from retinue.cli import budgets
    from retinue.core.files import versions, write_json
    from retinue.decode.offline import generate
    from retinue.decode.rows import RowFile
    from retinue.eval.instruct import predict, read_config

    records = read_config(config)
    record = folder / "run.json"
    settings = {
        **(settings or {}),
        "input": str(config),
        "params": params.model_dump(mode="json"),
        "template": processor.spec.template,
        "visual_tokens": budgets.setting(budget),
    }
    names = list(dict.fromkeys(one.dataset for one in records))
    kept = 0
    for name in names if not restart else ():
        rows = RowFile(folder / f"{name}.jsonl")
        opt.check_settings(record, settings, rows=rows)
        kept += len(rows.rows)
    write_json(record, {"status": "running", "settings": settings, "versions": versions()})

    def answers(some: Sequence[Record]) -> Iterator[str]:
        samples = (one.sample(number) for number, one in enumerate(some))
        found = generate(
            model, processor, samples, params=params, batch_size=batch_size, budget=budget
        )
        return (answer.text for answer in found)

    with opt.progress("generate", total=len(records), done=kept) as shown:
        results = predict(
            records,
            answers,
            folder,
            prompt=lambda one: processor.template.text([one.asked], reply=True),
            restart=restart,
            progress=lambda done: shown(kept + done),
        )
    counts = {name: len(rows) for name, rows in results.items()}
    facts = {"status": "done", "settings": settings, "counts": counts, "versions": versions()}
    write_json(record, facts)
    note(f"{sum(counts.values())} answers in {folder} ({kept} were there), see summary.md")
    return counts
