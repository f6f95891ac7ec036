"""`retinue compare A B`: two results question by question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli.common import AsJson, examples, print_json, verb

app = verb()


@app.command(
    epilog=examples(
        "retinue compare runs/mine/result.json runs/base/result.json",
        "retinue compare runs/a/result.rows.jsonl runs/b/result.rows.jsonl --json",
    )
)
def compare(
    a: Annotated[Path, typer.Argument(help="A result of `retinue eval`, its rows, or its folder.")],
    b: Annotated[Path, typer.Argument(help="The other one, on the same questions.")],
    as_json: AsJson = False,
) -> None:
    """Subtract two results question by question: difference, 95 % interval, paired test."""
    from retinue.core.log import print_table
    from retinue.eval.compare import paired, read_result, table

    found = paired(read_result(a), read_result(b))
    if as_json:
        print_json(found)
        return
    header, lines = table(found)
    print_table(lines, header=header)
    for own in found:
        if own["left_out"]:
            typer.echo(f"{own['task']}: {own['left_out']} rows stand in one of the two only")
