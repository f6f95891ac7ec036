"""`retinue data check|show|world`: is a data set fit for training, and what would training see?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import data_convert, data_preprocess, data_world
from retinue.cli.common import AsJson, Overrides, examples, note, print_json, verb
from retinue.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from retinue.data.spec import DataSpec
    from retinue.processor import Processor
    from retinue.types import Media, Sample

app = verb("Check a data set before training, look at it as training would see it, or draw one.")

Source = Annotated[
    str, typer.Argument(help="A data file (.json, .jsonl), or a recipe with a data: section.")
]
Model = Annotated[
    str | None,
    typer.Option(help="Model whose processor counts tokens and masks; a recipe's own by default."),
]
MediaRoot = Annotated[str | None, typer.Option(help="Folder of relative media paths.")]


@app.command(
    epilog=examples(
        "retinue data check chat.jsonl --media-root images",
        "retinue data check llava_v1_5_mix665k.json --media-root playground/data --fix-suffix",
        "retinue data check llava15-7b/sft --model runs/llava15-7b-align/model --report out.json",
    )
)
def check(
    source: Source,
    overrides: Overrides = None,
    model: Model = None,
    media_root: MediaRoot = None,
    report: Annotated[Path | None, typer.Option(help="Write all findings here, as JSON.")] = None,
    decode: Annotated[bool, typer.Option(help="Decode every picture, not only headers.")] = True,
    fix_suffix: Annotated[
        bool, typer.Option(help="Write pictures there under another suffix (.png for .jpg) anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find missing or broken pictures, wrong placeholders, samples without target; 3 if any."""
    from dataclasses import replace

    from rich.console import Console

    from retinue.data.check import check as check_data
    from retinue.data.tree import MediaTree

    spec, own_model = data_spec(source, overrides or [], media_root=media_root)
    tree = MediaTree(spec) if media_root or fix_suffix else None
    if tree is not None and fix_suffix:
        done = [reason for _, reason in tree.fix()]
        note(f"written anew under the wanted suffix: {done.count(None)} of {len(done)}")
    found = check_data(spec, processor_of(model or own_model), decode=decode)
    if tree is not None:
        found = replace(found, folders=tree.report())
        waiting = sum(row.other_suffix for row in found.folders)
        if waiting:
            note(
                f"{waiting} pictures are there under another suffix: --fix-suffix writes them anew"
            )
    if as_json:
        print_json(found.json())
    else:
        Console().print(found)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(found.json(), indent=2, ensure_ascii=False), "utf-8")
    if not found.ok:
        raise typer.Exit(DataError.exit_code)


@app.command(
    epilog=examples(
        "retinue data show chat.jsonl --model runs/quickstart/model --out page.html",
        "retinue data show llava15-7b/sft --limit 5 --json",
    )
)
def show(
    source: Source,
    overrides: Overrides = None,
    model: Model = None,
    media_root: MediaRoot = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("samples.html"),
    limit: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 20,
    start: Annotated[int, typer.Option(min=0, help="First record of each source.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a page with pictures, prompts and the label mask in colour; --json: records as read."""
    spec, own_model = data_spec(source, overrides or [], media_root=media_root)
    samples = islice(read(spec, start=start), limit)
    if as_json:
        print_json([plain(sample) for sample in samples])
        return
    processor = processor_of(model or own_model)
    if processor is None:
        raise ConfigError(
            "the page needs a model's template and tokenizer",
            where=source,
            fix="name one with --model, or look at the records with --json",
        )
    from retinue.data.show import show_html

    out.parent.mkdir(parents=True, exist_ok=True)
    show_html(samples, processor, out=out, title=source)
    note(f"open {out}")


app.command("convert", epilog=data_convert.EPILOG)(data_convert.convert)
app.command("preprocess", epilog=data_preprocess.EPILOG)(data_preprocess.preprocess)
app.command("world", epilog=data_world.EPILOG)(data_world.world)


def data_spec(
    source: str, overrides: list[str], *, media_root: str | None
) -> tuple[DataSpec, str | None]:
    """The data section of a recipe, or one made of a single file; and the recipe's model."""
    from retinue.core.compose import compose
    from retinue.data.spec import DataSpec

    path = Path(source)
    is_file = path.suffix in (".json", ".jsonl", ".tar") or path.is_dir()
    tree = compose(None if is_file else source, overrides).data
    data = dict(tree.get("data") or {})
    if is_file:
        data["sources"] = [{"path": source, **({"media_root": media_root} if media_root else {})}]
    elif media_root:
        data["sources"] = [{**item, "media_root": media_root} for item in data.get("sources", [])]
    return DataSpec.parse(data, where=f"{source}: data"), (tree.get("model") or {}).get("from")


def processor_of(model: str | None) -> Processor | None:
    """The processor of a model folder; its weights are not read."""
    if model is None:
        return None
    from retinue.hub.load import make_processor
    from retinue.hub.sources import open_folder

    return make_processor(open_folder(model))


def read(spec: DataSpec, *, start: int) -> Iterator[Sample | DataError]:
    """Records of all sources in order; one that cannot be read comes as its error."""
    from retinue.data.files import open_file

    for source in spec.sources:
        file = open_file(source, root=Path())
        for index in range(start, min(len(file), source.limit or len(file))):
            try:
                yield file[index]
            except DataError as error:
                yield error


def place(medium: Media) -> str:
    """What names a picture: its source, or its name where its bytes are at hand."""
    return str(medium.name if isinstance(medium.source, bytes) else medium.source)


def plain(sample: Sample | DataError) -> dict[str, Any]:
    """A sample as JSON: role and text of each message, media by their source."""
    from retinue.types import Text

    if isinstance(sample, DataError):
        return {"error": str(sample)}
    turns = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, Text)
                else {"type": part.kind, part.kind: place(part)}
                for part in message.parts
            ],
        }
        for message in sample.messages
    ]
    return {"id": sample.id, "messages": turns, "meta": dict(sample.meta)}
