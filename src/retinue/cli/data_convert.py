"""`retinue data convert`: a published data set, or any table, as rows of the instruction format."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Annotated

import typer

from retinue.cli.common import examples, note

EPILOG = examples(
    "retinue data convert detail_23k.json detail.json --from llava",
    "retinue data convert v2_OpenEnded_mscoco_train2014_questions.json vqa.json --from vqav2",
    "retinue data convert mine.csv mine.json --from map --map image=file,question=q,answer=a",
    "retinue data convert imagenet/train imagenet.json --from imagefolder --names classes.txt",
)


def convert(
    source: Annotated[Path, typer.Argument(help="The data set's own file or folder.")],
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    origin: Annotated[
        str, typer.Option("--from", help="The data set, one of `retinue ls datasets`.")
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN,...",
            help="For --from map: which column is id, image, question and answer.",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="For --from imagefolder: what each folder is called, lines or JSON."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Folder of the pictures, as rows shall name it. Default: the data set's."
        ),
    ] = None,
    made: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures that are cut out, joined or taken from videos."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="One part of a file that has several (train, val, en...).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws wordings of requests, and orders.")] = 0,
) -> None:
    """Write rows of `input` and `output`, pictures' paths between two <img_path>.

    `imagefolder` writes conversations, as SPHINX's tuning example has them.
    """
    from retinue.core.errors import ConfigError, DataError
    from retinue.core.files import write_json
    from retinue.data.published import PUBLISHED, Raw

    if origin not in PUBLISHED:
        raise ConfigError(PUBLISHED.unknown(origin), where="--from")
    if not source.exists():
        raise DataError("there is no such file", where=str(source), fix="check the path")
    raw = Raw(
        path=source,
        images=images,
        rng=Random(seed),
        split=split,
        columns=named_columns(columns),
        made=made,
        names=names,
        shown_as=made.as_posix() if made else "",
    )
    try:
        rows = list(PUBLISHED.get(origin)(raw))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise DataError(
            f"a record is not as {origin!r} has it: {type(error).__name__} {error}",
            where=str(source),
            rule=PUBLISHED.describe(origin),
            fix="check that --from names the right data set, or use --from map",
        ) from error
    if not rows:
        raise DataError(
            "no record became a row", where=str(source), rule=PUBLISHED.describe(origin)
        )
    write_json(out, rows)
    note(f"{len(rows)} rows: {out}")


def named_columns(text: str | None) -> dict[str, str]:
    """`image=file,answer=a` as a table. Raises ConfigError."""
    from retinue.core.errors import ConfigError

    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else []:
        name, mark, column = part.partition("=")
        if not mark or not name.strip() or not column.strip():
            raise ConfigError(
                f"{part!r} names no column", where="--map", rule="FIELD=COLUMN, commas between"
            )
        found[name.strip()] = column.strip()
    return found
