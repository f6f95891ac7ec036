"""`retinue data convert`: a published data set as rows of the instruction format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli.common import examples, note

EPILOG = examples(
    "retinue data convert detail_23k.json detail.json --from llava",
    "retinue data convert LRV-155k.json lrv.json --from lrv",
)


def convert(
    source: Annotated[Path, typer.Argument(help="The data set's own file.")],
    out: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    origin: Annotated[
        str, typer.Option("--from", help="llava, lrv, wizardlm, pf_1m or video_chat.")
    ],
) -> None:
    """Write rows of `input` and `output`, pictures' paths between two <img_path>."""
    from retinue.core.errors import ConfigError
    from retinue.core.files import write_json
    from retinue.data.sources import SOURCES

    if origin not in SOURCES:
        raise ConfigError(
            f"no converter {origin!r}", where="--from", rule=f"known: {', '.join(SOURCES)}"
        )
    rows = list(SOURCES[origin](source))
    write_json(out, rows)
    note(f"{len(rows)} rows: {out}")
