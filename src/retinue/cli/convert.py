"""`retinue convert SRC DST --to FORMAT`: one checkpoint format to another, bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from retinue.cli.common import AsJson, examples, pairs, print_json, verb

app = verb()


@app.command(
    epilog=examples(
        "retinue convert liuhaotian/llava-v1.5-7b llava-7b --to retinue",
        "retinue convert runs/llava15-7b-align/model llava-out --to llava --tower include",
    )
)
def convert(
    source: Annotated[str, typer.Argument(help="A folder or hub id in any known format.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Literal["retinue", "llava", "hf"], typer.Option(help="The format to write.")],
    base: Annotated[
        str | None, typer.Option(help="What a projector, LoRA or adapter stands on.")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of an encoder.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template to use instead of the folder's.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Default: as they are.")
    ] = None,
    tower: Annotated[
        Literal["auto", "include", "external"],
        typer.Option(help="For --to llava: write the encoder into the folder?"),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Convert a model folder and report every key that was unused or missing."""
    import torch

    from retinue.hub.convert import convert as convert_folder

    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    report = convert_folder(
        source,
        target,
        to=to,
        base=base,
        encoders=pairs(encoder, option="--encoder") or None,
        template=template,
        dtype=names[dtype] if dtype else None,
        tower=tower,
    )
    if as_json:
        print_json(asdict(report))
    else:
        typer.echo(str(report))
