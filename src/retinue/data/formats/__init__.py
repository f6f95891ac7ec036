"""Formats: files -> Sample, by index. `FORMATS` names them, `open_format` finds the right one."""

from __future__ import annotations

from pathlib import Path

from retinue.core.errors import DataError
from retinue.core.registry import Registry
from retinue.data.formats.base import Format

FORMATS: Registry[type[Format]] = Registry(
    "format",
    {
        "accessory": "retinue.data.formats.accessory:Accessory",
        "chat": "retinue.data.formats.chat:Chat",
        "collection": "retinue.data.formats.collection:Collection",
        "hdf5": "retinue.data.formats.hdf5:Hdf5",
        "instruct": "retinue.data.formats.instruct:Instruct",
        "llava": "retinue.data.formats.llava:Llava",
        "shards": "retinue.data.formats.shards:Shards",
    },
)


def detect_format(path: str | Path) -> str:
    """The name of the format that claims the contents of `path`.

    Raises DataError where no format does, with what the first of them found wrong.
    """
    path = Path(path)
    if path.suffix == ".tar" or (not path.is_file() and is_pattern(path) and not holds_hdf5(path)):
        return "shards"
    if not path.is_file() and not holds_hdf5(path):
        raise DataError(
            "there is no such file" if not path.exists() else "this is no file",
            where=str(path),
            rule="a data source is one file",
            fix="check the path",
        )
    refusal: DataError | None = None
    for name in FORMATS:
        try:
            if FORMATS.get(name).claims(path):
                return name
        except DataError as error:
            refusal = refusal or error
    raise refusal or DataError(
        "the first record fits no format",
        where=str(path),
        rule="chat has 'messages', llava has 'conversations', instruct has 'input' and "
        "'output'; formats: " + ", ".join(FORMATS),
        fix="name the format with 'format:', or convert the file",
    )


def is_pattern(path: Path) -> bool:
    """Whether a path that is no file names shards: a folder of them, or a pattern."""
    if path.is_dir():
        return next(path.glob("*.tar"), None) is not None
    return "{" in str(path) or "*" in path.name


def holds_hdf5(path: Path) -> bool:
    """Whether `path` is a folder of HDF5 files, which count as one source."""
    return path.is_dir() and next(path.glob("*.h5"), None) is not None


def open_format(
    path: str | Path,
    *,
    format: str = "auto",
    media_root: str | Path | None = None,
    empty_answers: bool = False,
) -> Format:
    """Open a data file; `auto` looks at its contents.

    Raises DataError for a file that cannot be read, ConfigError for an unknown format.
    """
    name = detect_format(path) if format == "auto" else format
    return FORMATS.get(name).open(path, media_root=media_root, empty_answers=empty_answers)


__all__ = ["FORMATS", "Format", "detect_format", "open_format"]
