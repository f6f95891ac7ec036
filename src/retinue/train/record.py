"""What a run leaves behind for machines: run.json, trainable.json, the resolved recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from retinue.core.errors import EnvError
from retinue.core.files import versions, write_json
from retinue.model.freeze import TrainableTable


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one clear line. Raises EnvError."""
    try:
        yield
    except OSError as error:
        raise EnvError(
            "cannot be written",
            where=str(error.filename or folder),
            rule=error.strerror or str(error),
            fix="free space or choose another folder, then run the same command to resume",
        ) from error


def write_recipe(folder: Path, config: Mapping[str, Any]) -> None:
    """recipe.yaml: the recipe with includes and overrides resolved."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False)
    (folder / "recipe.yaml").write_text(text, "utf-8")


def write_tables(folder: Path, tables: Mapping[str, TrainableTable]) -> None:
    """trainable.json: stage -> its table."""
    data = {name: t.to_json() for name, t in tables.items()}
    write_json(folder / "trainable.json", data, default=str)


def write_run(
    folder: Path,
    *,
    status: str,
    metrics: Mapping[str, Any],
    counts: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
) -> None:
    """run.json. status: done, or stopped by a signal's name."""
    write_json(
        folder / "run.json",
        {
            "status": status,
            "metrics": metrics,
            "counts": counts,
            "stages": list(stages),
            "versions": versions(),
            "command": sys.argv,
        },
        default=str,
    )
