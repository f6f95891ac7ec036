"""`retinue generate PATH --input rows.jsonl`: an answer to every row, batched and resumable."""

from __future__ import annotations

from collections.abc import Iterator
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
    quant_setting,
    verb,
)
from retinue.cli.sharing import TensorParallel, sharing

if TYPE_CHECKING:
    from retinue.decode.budget import Budget
    from retinue.decode.loop import Runner
    from retinue.decode.sampling import SamplingParams
    from retinue.processor import Processor
    from retinue.types import Sample

app = verb()


@app.command(
    epilog=examples(
        "retinue generate runs/quickstart/model --input questions.jsonl --output answers.jsonl",
        "retinue generate llava-hf/llava-1.5-7b-hf --input q.jsonl --output a.jsonl --batch-size 4",
        "retinue generate runs/mine/model --input config.json --output predictions --beams 3",
        "retinue generate runs/m3/model --input q.jsonl --output a.jsonl --visual-tokens auto",
    )
)
def generate(
    path: opt.ModelPath,
    input: Annotated[
        Path,
        typer.Option(help="Rows {id, messages}, one a line; or a JSON list of data sets (docs)."),
    ],
    output: Annotated[
        Path, typer.Option(help="Rows {id, text, tokens, finish}; of data sets, a folder.")
    ],
    max_new_tokens: opt.MaxNewTokens = 512,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    no_repeat_ngram: opt.NoRepeatNgram = 0,
    beams: opt.Beams = 1,
    length_penalty: opt.LengthPenalty = 1.0,
    stop: opt.Stop = None,
    seed: opt.Seed = 0,
    visual_tokens: budgets.VisualTokens = None,
    auto_threshold: budgets.AutoThreshold = None,
    batch_size: opt.BatchSize = 8,
    media_root: opt.MediaRoot = None,
    on_error: opt.OnError = "error",
    restart: opt.Restart = False,
    template: opt.Template = None,
    video_as: opt.VideoAs = None,
    adapter: opt.Adapters = None,
    base: opt.Base = None,
    device: Device = "auto",
    tp: TensorParallel = None,
    dtype: opt.Dtype = "auto",
    quant: Quant = None,
    quant_encoders: QuantEncoders = False,
    quant_head: QuantHead = False,
) -> None:
    """Answer every row of a JSONL file; run again to go on where it was interrupted."""
    from retinue.decode.sampling import SamplingParams
    from retinue.eval.instruct import is_config, read_config
    from retinue.eval.questions import open_rows

    several = is_config(input)
    if several:  # a wrong file fails before the model is loaded
        read_config(input)
    else:
        open_rows(input, media_root=media_root)
    params = SamplingParams.parse(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
            "no_repeat_ngram_size": no_repeat_ngram,
            "num_beams": beams,
            "length_penalty": length_penalty,
            "stop": tuple(stop or ()),
            "seed": seed,
        },
        where="generate",
    )
    with sharing(tp) as shared:
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
            shared=shared,
        )
        common: dict[str, Any] = {
            "params": params,
            "batch_size": batch_size,
            "restart": restart,
            "budget": budgets.chosen(processor, visual_tokens, path=path, threshold=auto_threshold),
            "settings": {
                "model": path,
                "weights": opt.identity(path),
                "adapters": adapter or [],
                "base": base,
                "video": video_as,
                "quant": quant_setting(quant, encoders=quant_encoders, head=quant_head),
            },
        }
        if several:
            from retinue.cli.dataset_predictions import write_predictions

            write_predictions(model, processor, input, output, **common)
            return
        skip = on_error == "skip"
        counts = write_answers(
            model, processor, input, output, media_root=media_root, skip=skip, **common
        )
        note(f"{counts['answered']} answers in {output} ({counts['kept']} were there)")


def write_answers(
    model: Runner,
    processor: Processor,
    source: Path,
    output: Path,
    *,
    params: SamplingParams,
    batch_size: int = 8,
    media_root: Path | None = None,
    skip: bool = False,
    restart: bool = False,
    budget: Budget = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, int]:
    """Answer the rows of `source` into `output`; returns counts.

    budget: as in decode; rows then say how many visual tokens were used. Rows already there stay.
    Beside it: OUTPUT.run.json (settings, counts, versions) and, with `skip`, OUTPUT.errors.jsonl
    with the rows that could not be used. Raises DataError for such a row otherwise, ConfigError if
    the rows there were made with other settings.
    """
    from retinue.core.errors import DataError
    from retinue.core.files import versions, write_json
    from retinue.data.formats.records import Records
    from retinue.decode.offline import generate as decode
    from retinue.decode.rows import RowFile
    from retinue.eval.questions import open_rows

    data, records = open_rows(source, media_root=media_root), Records(source)
    rows = RowFile(output, restart=restart)
    skips = opt.Skips(beside(output, "errors.jsonl"), restart=restart)
    record = beside(output, "run.json")
    settings = {
        **(settings or {}),
        "params": params.model_dump(mode="json"),
        "template": processor.spec.template,
        "visual_tokens": budgets.setting(budget),
    }
    opt.check_settings(record, settings, rows=rows)

    def name(index: int) -> Any:
        found = records[index].get("id")
        return f"{source.stem}-{index}" if found is None else found

    first = rows.settled(map(name, range(len(data))), skipped=skips.numbers)
    skips.forget_from(first)
    counts = {"rows": len(data), "kept": len(rows.rows), "answered": len(rows.rows), "skipped": 0}

    def keep(status: str) -> None:
        counts["skipped"] = len(skips.rows)
        facts = {"status": status, "settings": settings, "counts": counts, "versions": versions()}
        write_json(record, facts)

    places: list[int] = []

    def samples() -> Iterator[Sample]:
        for index in range(first, len(data)):
            try:
                sample = data[index]
            except DataError as error:
                if not skip:
                    raise
                skips.add(index, name(index), error)
                continue
            places.append(index)
            yield sample

    def refused(number: int, sample: Sample, error: Exception) -> None:
        skips.add(places[number], name(places[number]), error)

    keep("running")
    with opt.progress("generate", total=len(data), done=first) as shown:
        for answer in decode(
            model,
            processor,
            samples(),
            params=params,
            batch_size=batch_size,
            skipped=refused if skip else None,
            budget=budget,
        ):
            place = places[answer.number]
            rows.append(
                {
                    "id": name(place),
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "finish": answer.finish,
                    **({} if budget is None else budgets.row_fields(answer)),
                }
            )
            counts["answered"] += 1
            shown(place + 1)
    keep("done")
    skips.report()
    return counts


def beside(output: Path, ending: str) -> Path:
    """`answers.jsonl` -> `answers.jsonl.run.json`."""
    return output.with_name(f"{output.name}.{ending}")
