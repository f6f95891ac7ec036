"""Tar shards read in place: where each sample's parts lie, and what is damaged.

A shard is scanned once, header by header; parts are then read at their offsets, in any order, by
any process. Names follow webdataset: members of one key, up to the first dot, are one sample.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from retinue.core.errors import DataError

BLOCK = 512
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
LONG_NAME, PAX, PAX_GLOBAL = b"L", b"x", b"g"


@dataclass(slots=True, kw_only=True)
class Parts:
    """One sample of a shard: ending -> (offset, size). damage: why it cannot be read."""

    shard: Path
    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    damage: str | None = None

    def read(self, name: str) -> bytes:
        """The bytes of a part. Raises DataError for a file that has changed since the scan."""
        offset, size = self.parts[name]
        with self.shard.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise DataError("a part is cut off", where=f"{self.shard}: {self.key}.{name}")
        return data


def scan(path: Path) -> list[Parts]:
    """The samples of a shard in order; a damaged place is a sample with `damage`.

    Raises DataError for a file that is no tar, or a compressed one.
    """
    found: list[Parts] = []
    try:
        with path.open("rb") as file:
            for name, offset, size, damage in _members(file, path=path):
                if damage is not None:
                    found.append(Parts(shard=path, key=name or f"byte {offset}", damage=damage))
                    continue
                split = NAME.match(name)
                if split is None or split[1].rpartition("/")[2].startswith("__"):
                    continue
                key, ending = split[1], split[2].lower()
                last = found[-1] if found else None
                if last is None or last.key != key or last.damage:
                    last = Parts(shard=path, key=key)
                    found.append(last)
                if ending in last.parts:
                    last.damage = f"two parts {ending!r}"
                last.parts[ending] = (offset, size)
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", where=str(path), fix="check the path"
        ) from None
    return found


def _members(file: BinaryIO, *, path: Path) -> Iterator[tuple[str, int, int, str | None]]:
    """(name, offset of the data, size, damage) of every file in a tar."""
    end = path.stat().st_size
    name, at, whole = "", 0, True
    while at + BLOCK <= end:
        file.seek(at)
        block = file.read(BLOCK)
        if not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            if not at:
                raise _no_tar(path, block) from None
            if whole:
                yield "", at, 0, f"no header of a member: {error}"
            whole, at = False, at + BLOCK  # on to the next place that looks like a header
            continue
        whole = True
        data, size = at + BLOCK, header.size
        at = data + -(-size // BLOCK) * BLOCK
        if data + size > end:
            yield name or header.name, data, size, f"cut off: {end - data} of {size} bytes"
            return
        if header.type in (LONG_NAME, PAX):
            file.seek(data)
            name = _long_name(file.read(size), kind=header.type) or name
        elif header.type != PAX_GLOBAL:
            if header.isfile():
                yield name or header.name, data, size, None
            name = ""
    if at < end:
        yield "", at, 0, "the file ends within a header"


def _long_name(data: bytes, *, kind: bytes) -> str:
    if kind == LONG_NAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    found = re.search(rb"\d+ path=([^\n]*)\n", data)
    return found[1].decode("utf-8", "surrogateescape") if found else ""


def _no_tar(path: Path, block: bytes) -> DataError:
    packed = block.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    return DataError(
        "a compressed shard" if packed else "no tar file",
        where=str(path),
        rule="shards are read in place, at their members' offsets",
        fix="unpack it once (gunzip), keep the .tar" if packed else "check the path",
    )


def expand(pattern: str | Path) -> list[Path]:
    """Files that a pattern names: `{00000..00041}`, `{a,b}` and `*`, or a folder's *.tar, *.jsonl.

    Raises DataError where nothing, or not every file of a range, is there.
    """
    texts = [str(pattern)]
    while any("{" in text for text in texts):
        texts = [more for text in texts for more in _braces(text, where=str(pattern))]
    found: list[Path] = []
    for text in texts:
        path = Path(text)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix in (".tar", ".jsonl"))
        elif "*" in path.name:
            found += sorted(path.parent.glob(path.name))
        else:
            found.append(path)
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        raise DataError(
            "there is no such file" if missing else "no shard",
            where=str(missing[0] if missing else pattern),
            rule="shards are local .tar or .jsonl files: a folder, {00000..00041} or *",
            fix="check the pattern, or copy the shards here",
        )
    return found


def _braces(text: str, *, where: str) -> list[str]:
    """The texts of the first pair of braces."""
    if "{" not in text:
        return [text]
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        raise DataError("an open brace", where=where, rule="{00000..00041} or {a,b}")
    before, after = text[: found.start()], text[found.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span is None:
        return [before + one + after for one in found[1].split(",")]
    width, first, last = len(span[1]), int(span[1]), int(span[2])
    return [f"{before}{number:0{width}}{after}" for number in range(first, last + 1)]
