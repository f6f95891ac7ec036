"""The folder of pictures that records point into: what is wanted, there, missing, misnamed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from retinue.core.errors import ConfigError, DataError, EnvError, MediaError
from retinue.data.formats import open_format
from retinue.data.report import FolderReport
from retinue.data.spec import DataSpec
from retinue.media.image import load_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
"""Under which a picture may be there instead of the wanted one."""
HERE = "."


@dataclass(slots=True)
class _Folder:
    wanted: set[Path] = field(default_factory=set)
    found: int = 0
    other: dict[Path, Path] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)


class MediaTree:
    """The files that a data section's records want below their media roots.

    Only local files count, and records that cannot be read are left to `check`. Raises ConfigError
    where no source has a media root.
    """

    def __init__(self, spec: DataSpec, *, root: str | Path = ".") -> None:
        self._folders: dict[str, _Folder] = {}
        self._listed: dict[Path, dict[str, list[str]]] = {}
        places = [source for source in spec.sources if source.media_root is not None]
        if not places:
            raise ConfigError(
                "no folder of pictures is named",
                where="data.sources",
                fix="--media-root DIR, or media_root of a source",
            )
        for source in places:
            top = Path(root) / str(source.media_root)
            file = open_format(
                Path(root) / source.path,
                format=source.format,
                media_root=top,
                empty_answers=source.empty_answers,
            )
            for index in range(min(len(file), source.limit or len(file))):
                try:
                    media = file[index].media
                except DataError:
                    continue
                self._add(top, (m.source for m in media if isinstance(m.source, str)))
        for folder in self._folders.values():
            for path in sorted(folder.wanted):
                self._sort(folder, path)

    def _add(self, top: Path, sources: Iterable[str]) -> None:
        for source in sources:
            path = Path(source)
            if "://" in source or source.startswith("data:") or not path.is_relative_to(top):
                continue
            inner = path.relative_to(top).parts
            name = inner[0] if len(inner) > 1 else HERE
            self._folders.setdefault(name, _Folder()).wanted.add(path)

    def _sort(self, folder: _Folder, path: Path) -> None:
        there = self._names(path.parent).get(path.stem, [])
        if path.name in there:
            folder.found += 1
        elif others := [name for name in there if Path(name).suffix.lower() in SUFFIXES]:
            folder.other[path] = path.parent / sorted(others)[0]
        else:
            folder.missing.append(path)

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """Stem -> names in a folder, read once."""
        if folder not in self._listed:
            table: dict[str, list[str]] = {}
            if folder.is_dir():
                for name in os.listdir(folder):
                    table.setdefault(Path(name).stem, []).append(name)
            self._listed[folder] = table
        return self._listed[folder]

    def report(self) -> list[FolderReport]:
        """Counts of every folder right below a media root, and its first missing files."""
        return [
            FolderReport(
                folder=name,
                wanted=len(folder.wanted),
                found=folder.found,
                other_suffix=len(folder.other),
                missing=len(folder.missing),
                examples=[str(path) for path in folder.missing[:3]],
            )
            for name, folder in sorted(self._folders.items())
        ]

    def fix(self) -> Iterator[tuple[Path, str | None]]:
        """Write every picture that is there under another suffix again under the wanted one.

        Yields (wanted path, why it could not be done or None). What is there stays; the first
        frame counts of a picture that moves. Raises EnvError where the disk is full.
        """
        for folder in self._folders.values():
            for wanted, there in list(folder.other.items()):
                reason = reencode(there, wanted)
                if reason is None:
                    del folder.other[wanted]
                    folder.found += 1
                yield wanted, reason


def reencode(there: Path, wanted: Path) -> str | None:
    """One picture as another format, whole or not at all; the reason where it is no picture."""
    partial = wanted.with_name(f".{wanted.name}.part")
    Image.init()
    kind = Image.EXTENSION.get(wanted.suffix.lower())
    if kind is None:
        return f"no format has the suffix {wanted.suffix!r}"
    try:
        picture = load_image(str(there))
        quality = {"quality": 95} if kind == "JPEG" else {}
        picture.convert("RGB").save(partial, format=kind, **quality)
        partial.rename(wanted)
    except MediaError as error:
        return str(error)
    except OSError as error:
        raise EnvError(f"cannot be written ({error})", where=str(wanted)) from error
    finally:
        partial.unlink(missing_ok=True)
    return None
