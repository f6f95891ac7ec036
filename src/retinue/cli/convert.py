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
        "retinue convert runs/moss2-2b-sft/model out --to llava_moss2 --files bin",
    )
)
def convert(
    source: Annotated[str, typer.Argument(help="A folder or hub id in any known format.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        Literal["retinue", "llava", "llava_moss2", "moss2", "hf"],
        typer.Option(help="The format to write; moss2 is the language model alone."),
    ],
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
        typer.Option(help="For both kinds of llava: write the encoder into the folder?"),
    ] = "auto",
    files: Annotated[
        Literal["safetensors", "bin", "projector"],
        typer.Option(help="For the originals' formats: pytorch_model.bin, only mm_projector.bin."),
    ] = "safetensors",
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
        files=files,
    )
    if as_json:
        print_json(asdict(report))
    else:
        typer.echo(str(report))
