"""A source of a recipe as an open file: where it lies, and by which rules it is read."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from retinue.core.errors import ConfigError, DataError
from retinue.data.formats import Format, open_format
from retinue.data.formats.shards import Shards
from retinue.data.spec import SourceSpec


def open_file(source: SourceSpec, *, root: Path) -> Format:
    """The file of a source, without its further turns. Raises DataError, ConfigError."""
    file = open_format(
        path_of(source, root=root),
        format=source.format,
        media_root=media_root_of(source, root=root),
        empty_answers=source.empty_answers,
    )
    if source.web is None:
        return file
    if not isinstance(file, Shards):
        raise ConfigError(
            f"'web' for a file of format {type(file).__name__.lower()}",
            where=source.path,
            rule="it says what is taken of web documents (format shards)",
        )
    return file.using(source.web)


def path_of(source: SourceSpec, *, root: Path) -> Path:
    """Where a source lies: below the root, or among the packaged recipes."""
    return packaged(source.path) if source.path.startswith("recipe:") else root / source.path


def media_root_of(source: SourceSpec, *, root: Path) -> Path | None:
    """Where its pictures' paths start; None: beside the file."""
    return None if source.media_root is None else root / source.media_root


def packaged(path: str) -> Path:
    """A data file that recipes bring along: `recipe:flamingo-9b/mixture.json`."""
    file = Path(str(resources.files("retinue") / "recipes" / path.removeprefix("recipe:")))
    if not file.is_file():
        raise DataError(
            "no such file among the packaged recipes", where=path, fix="name a file of your own"
        )
    return file
