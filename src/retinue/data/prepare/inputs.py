"""Raw files as a stream of records, cut into chunks of about so many bytes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retinue.core.errors import DataError
from retinue.core.lazy import need
from retinue.data.formats.records import Records

SUFFIXES = (
    *(".jsonl", ".json", ".json.gz", ".jsonl.gz", ".jsonl.zst", ".jsonl.zst.tar", ".txt"),
    ".parquet",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One raw record: its bytes or its values, and its place for messages."""

    place: str
    size: int
    raw: bytes | None = None
    value: dict[str, Any] | None = None

    def load(self) -> dict[str, Any]:
        """The record as a mapping. Raises DataError for broken JSON."""
        if self.value is not None:
            return self.value
        assert self.raw is not None
        try:
            found = json.loads(self.raw)
        except ValueError as error:
            raise DataError(f"broken JSON: {error}", where=self.place) from None
        if not isinstance(found, dict):
            raise DataError("no JSON object", where=self.place)
        return found


def find_files(source: Path) -> list[Path]:
    """Files of a folder, sorted by path; or the one file. Raises DataError where there is none."""
    if source.is_file():
        return [source]
    found = sorted(p for p in source.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not found:
        raise DataError(
            "no file to read",
            where=str(source),
            rule=f"a folder is searched for {', '.join(SUFFIXES)}",
            fix="check setup.data.source",
        )
    return found


def records(path: Path) -> Iterator[Record]:
    """Every record of a file, one at a time."""
    name = path.name
    if name.endswith(".parquet"):
        yield from _parquet(path)
    elif name.endswith(".tar"):
        yield from _archive(path)
    elif name.endswith(".txt"):
        text = path.read_text("utf-8")
        yield Record(place=str(path), size=len(text.encode()), value={"text": text})
    elif name.endswith((".gz", ".zst")):
        with closing(_unpacked(path)) as stream:
            yield from _lines(stream, path)
    elif name.endswith(".json"):
        yield from _json(path)
    else:
        with path.open("rb") as stream:
            yield from _lines(stream, path)


def _lines(stream: IO[bytes], path: Path) -> Iterator[Record]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield Record(place=f"{path}:{number}", size=len(line), raw=line)


def _json(path: Path) -> Iterator[Record]:
    """A list of objects, or one object a line; only offsets are held."""
    found = Records(path)
    with path.open("rb") as stream:
        for index in range(len(found)):
            start, end = found._starts[index], found._ends[index]
            stream.seek(start)
            raw = stream.read(end - start)
            yield Record(place=f"{path}, record {index + 1}", size=len(raw), raw=raw)


def _unpacked(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    module = need("zstandard", extra="hdf5", purpose="reading .zst files")
    return io.BufferedReader(module.ZstdDecompressor().stream_reader(path.open("rb")))


def _archive(path: Path) -> Iterator[Record]:
    """The .jsonl.zst members of an archive, one after the other."""
    module = need("zstandard", extra="hdf5", purpose="reading .zst files")
    with tarfile.open(path) as archive:
        for member in archive:
            held = archive.extractfile(member) if member.name.endswith(".jsonl.zst") else None
            if held is not None:
                stream = io.BufferedReader(module.ZstdDecompressor().stream_reader(held))
                yield from _lines(stream, path / member.name)


def _parquet(path: Path) -> Iterator[Record]:
    module = need("pyarrow.parquet", extra="hdf5", purpose="reading parquet files")
    with closing(module.ParquetFile(path)) as file:
        number = 0
        for batch in file.iter_batches(batch_size=64):
            size = max(1, batch.nbytes // max(1, batch.num_rows))
            for value in batch.to_pylist():
                number += 1
                yield Record(place=f"{path}, row {number}", size=size, value=value)


def chunks(files: list[Path], *, size: int) -> Iterator[tuple[int, Path, list[Record]]]:
    """(number, file, records) of about `size` bytes each; a chunk never spans two files."""
    number = 0
    for path in files:
        held: list[Record] = []
        total = 0
        for record in records(path):
            held.append(record)
            total += record.size
            if total >= size:
                yield number, path, held
                number, held, total = number + 1, [], 0
        if held:
            yield number, path, held
            number += 1


def input_bytes(files: list[Path]) -> int:
    """Bytes of all files on disk."""
    return sum(path.stat().st_size for path in files)
