"""What chat, generate and eval share: options, loading, a progress bar, a list of skipped rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.cli.sharing import Shared
    from retinue.decode.rows import RowFile
    from retinue.model.retinue import Retinue
    from retinue.processor import Processor

ModelPath = Annotated[
    str, typer.Argument(metavar="PATH", help="A model: local folder or owner/name on the hub.")
]
Dtype = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option(help="Number format of the weights; auto: that of the files."),
]
Template = Annotated[
    str | None, typer.Option(help="Prompt dialect (`retinue ls templates`); default: the model's.")
]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="A LoRA folder to put on top; may repeat.")
]
Base = Annotated[
    str | None, typer.Option(help="The model that a projector or LoRA folder PATH stands on.")
]
MediaRoot = Annotated[
    Path | None, typer.Option(help="Folder of relative image paths; default: the data file's.")
]
VideoAs = Annotated[
    str | None,
    typer.Option(help="How a video is seen (`retinue ls videos`); default: the model's, frames."),
]
Temperature = Annotated[float, typer.Option(min=0, help="0: always the likeliest; 1: as trained.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest that reach this probability.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from this many of the likeliest; 0: all.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: what was said is less likely.")]
NoRepeatNgram = Annotated[
    int, typer.Option("--no-repeat-ngram", min=0, help="No run of this many tokens twice; 0: off.")
]
Beams = Annotated[
    int, typer.Option(min=1, help="Answers searched side by side; the best is kept. 1: none.")
]
LengthPenalty = Annotated[
    float, typer.Option(help="Of beams: scores are divided by length to this power; 0: sums.")
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may repeat.")]
Seed = Annotated[int, typer.Option(help="Same seed, same draws.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows decoded side by side.")]
OnError = Annotated[
    Literal["error", "skip"],
    typer.Option(
        help="At a row that cannot be used: stop, or go on and list it beside the output."
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Begin anew instead of going on where the output ends.")
]


def load_model(
    path: str,
    *,
    device: str,
    dtype: str,
    template: str | None = None,
    adapters: list[str] | None = None,
    base: str | None = None,
    quant: str | None = None,
    quant_encoders: bool = False,
    quant_head: bool = False,
    video: str | None = None,
    shared: Shared | None = None,
) -> tuple[Retinue, Processor]:
    """The model and processor that the options describe.

    shared: the processes that may run its layers together. In all of them but the first this never
    returns: typer.Exit comes when the first one is done.
    """
    import torch

    from retinue.decode.prompt import with_video
    from retinue.hub.load import load
    from retinue.ops.backend import pick_device, visible_room

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    place, mesh = pick_device(device)[0], None
    if shared is not None:
        place, mesh = shared.meet(place)
    model, processor = load(
        path,
        device=place,
        mesh=mesh,
        room=visible_room() if device == "auto" and mesh is None else (),
        follows=shared is not None and shared.follows,
        dtype=dtypes.get(dtype),
        template=template,
        adapters=adapters or (),
        base=base,
        quant=quant,
        quant_encoders=quant_encoders,
        quant_head=quant_head,
    )
    if shared is not None and mesh is not None:
        shared.take(model)
    return model, with_video(processor, video)


def identity(path: str | Path) -> str | None:
    """A short mark that changes when a local folder's files or a file do; None for a hub id.

    A fitted automatic budget is no part of a model: what it decides is a setting of its own.
    """
    import hashlib

    place = Path(path).expanduser()
    if not place.exists():
        return None
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.is_file())
    files = [file for file in files if file.name != "auto_budget.json"]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def check_settings(record: Path, settings: dict[str, Any], *, rows: RowFile) -> None:
    """Refuse to go on with an output that was made with other settings.

    Raises ConfigError naming what differs.
    """
    import json

    from retinue.core.errors import ConfigError

    if not rows.rows or not record.exists():
        return
    try:
        before = dict(json.loads(record.read_text("utf-8"))["settings"])
    except (ValueError, KeyError, TypeError):
        return
    old, now = flat(before), flat(json.loads(json.dumps(settings)))
    differ = [key for key in now if old.get(key) != now[key]]
    if differ:
        raise ConfigError(
            f"the rows in {rows.path.name} were made with other settings",
            where=str(rows.path),
            rule=", ".join(
                f"{key} was {old.get(key)!r:.60}, is {now[key]!r:.60}" for key in differ
            ),
            fix="--restart, or name another output",
        )


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings and, by their own names, the sampling parameters."""
    return {**{k: v for k, v in settings.items() if k != "params"}, **settings.get("params", {})}


class Skips:
    """Rows that could not be used: {row (from 0), id, error} as JSONL; no file while empty."""

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        from retinue.decode.rows import RowFile

        self.file = RowFile(path, restart=restart)
        self.rows = self.file.rows

    @property
    def numbers(self) -> set[int]:
        return {int(row["row"]) for row in self.rows}

    def forget_from(self, first: int) -> None:
        """Rows from `first` on are tried again."""
        self.rows = [row for row in self.rows if row["row"] < first]
        if self.rows:
            self.file.rewrite(self.rows)
        else:
            self.file.path.unlink(missing_ok=True)

    def add(self, number: int, id: Any, error: Exception) -> None:
        row = {"row": number, "id": id, "error": str(error)}
        self.rows.append(row)
        self.file.append(row)

    def report(self) -> None:
        if self.rows:
            note(f"skipped {len(self.rows)} rows, listed in {self.file.path}")


@contextmanager
def progress(title: str, *, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, a line per tenth elsewhere; stderr only."""
    if not sys.stderr.isatty():
        said, begin = [done * 10 // max(total, 1)], monotonic()

        def line(count: int) -> None:
            tenth = count * 10 // max(total, 1)
            if tenth > said[0]:
                said[0] = tenth
                left = (monotonic() - begin) / max(count - done, 1) * (total - count)
                note(f"{title}: {count}/{total}" + (f", {left:.0f} s left" if left else ""))

        yield line
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.update(task, completed=count)
