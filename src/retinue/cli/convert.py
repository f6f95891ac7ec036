"""`retinue convert SRC DST --to FORMAT`: one checkpoint format to another, bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from retinue.cli.common import AsJson, examples, pairs, print_json, verb

app = verb()


def show_pairs(wanted: bool) -> None:
    """Print every pair of formats, and end."""
    if not wanted:
        return
    from retinue.hub.targets.pairs import PAIRS

    for source, targets in PAIRS.items():
        typer.echo(f"{source:16} -> {', '.join(targets)}")
    typer.echo("hf-pair is ModelZoo's image_model/ beside text_model/; mm_simple its checkpoint.")
    typer.echo("What a target cannot express is refused by name before anything is written.")
    raise typer.Exit


@app.command(
    epilog=examples(
        "retinue convert liuhaotian/llava-v1.5-7b llava-7b --to retinue",
        "retinue convert runs/llava15-7b-align/model llava-out --to llava --tower include",
        "retinue convert runs/moss2-2b-sft/model out --to llava_moss2 --files bin",
        "retinue convert folder-with-image_model-and-text_model out --to mm_simple",
        "retinue convert SPHINX-MoE sphinx-moe-4 --to sphinx --shards 4",
        "retinue convert released.pt,tuned.pt,tuning.json out --to retinue --base mpt-7b",
        "retinue convert runs/sft/model for-vllm --to vllm",
        "retinue convert --list",
    )
)
def convert(
    source: Annotated[str, typer.Argument(help="A folder or hub id in any known format.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        str,
        typer.Option(metavar="FORMAT", help="The format to write (`retinue ls targets`)."),
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
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of a tokenizer, for sources that have none.")
    ] = None,
    release: Annotated[
        str, typer.Option(help="For --to mm_simple: the format's version, 2.3 to 2.9.")
    ] = "2.9",
    exact: Annotated[
        bool,
        typer.Option(help="For --to mm_simple: repeat the original converter's defects."),
    ] = False,
    shards: Annotated[
        int, typer.Option(min=1, max=99, help="For --to sphinx: number of files.")
    ] = 1,
    pairs_only: Annotated[
        bool,
        typer.Option("--list", is_eager=True, callback=show_pairs, help="Show all pairs; end."),
    ] = False,
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
        tokenizer=tokenizer,
        release=release,
        exact=exact,
        shards=shards,
    )
    if as_json:
        print_json(asdict(report))
    else:
        typer.echo(str(report))
