"""`retinue data preprocess CONFIG`: raw JSON, JSONL or parquet to HDF5 files for training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli.common import AsJson, Overrides, examples, note, print_json

EPILOG = examples(
    "retinue data preprocess llava_phase_1_preproc.yaml --processes 8",
    "retinue data preprocess mine.yaml setup.output_dir=h5 processing.max_seq_length=4096",
    "retinue data preprocess mine.yaml --hooks my_hooks.py",
)


def preprocess(
    config: Annotated[
        Path, typer.Argument(help="YAML with the sections setup, processing and dataset.")
    ],
    overrides: Overrides = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Instead of setup.processes; default: all cores.")
    ] = None,
    hooks: Annotated[
        Path | None, typer.Option(help="Python file that defines a read_hook of your own.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(help="Treat broken records as ModelZoo does: they end their file."),
    ] = False,
    restart: Annotated[
        bool, typer.Option(help="Remove what an earlier run wrote, instead of going on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize raw records into HDF5 files in ModelZoo's layout; its configs work unchanged.

    Paths in the config start at the working folder. A run that was stopped goes on where it was.
    Records left out are listed in skipped.json, counts are in data_params.json.
    """
    from retinue.cli.answering import progress
    from retinue.core.compose import compose
    from retinue.data.prepare.inputs import find_files, input_bytes
    from retinue.data.prepare.run import prepare
    from retinue.data.prepare.spec import parse_spec

    data = compose(str(config), overrides or []).data
    setup = dict(data.get("setup") or {})
    if processes is not None:
        setup["processes"] = processes
    spec = parse_spec({**data, "setup": setup}, where=str(config))
    total = input_bytes(find_files(Path(spec.setup.data.source)))
    begin, seen = time.monotonic(), [0, 0]
    with progress("tokenizing (KB)", total=total // 1024) as shown:

        def tell(records: int, size: int) -> None:
            seen[0] += records
            seen[1] += size
            shown(seen[1] // 1024)

        made = prepare(spec, given=data, hooks=hooks, exact=exact, restart=restart, progress=tell)
    took = time.monotonic() - begin
    post = made.report["post-process"]
    rate = f", {seen[0] / took:.0f} records/s" if seen[0] else ", nothing left to do"
    note(f"{post['n_examples']} rows in {len(made.files)} files in {made.folder}{rate}")
    if made.skipped:
        place, reason = made.skipped[0]
        note(f"{len(made.skipped)} records left out (skipped.json), the first: {place}: {reason}")
    if as_json:
        print_json({**made.report, "records_per_second": seen[0] / took})
