"""The length index of a source: what the plan must know of every sample, computed once.

Cached on disk under the hash of the file and the fingerprint of the processor. Lengths come from
image headers, so nothing is decoded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np

from retinue.core.errors import DataError, EnvError, RetinueError
from retinue.data.formats import Format
from retinue.data.formats.base import PLACEHOLDER, RefusedError
from retinue.data.workers import ordered_map
from retinue.types import Sample, Text

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

CHUNK = 32


class Measure(Protocol):
    """The part of the Processor that the index needs."""

    def length(self, sample: Sample) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A sample that was left out, and why. `index`: its record in the source.

    refused: by the source's own rules, which is no error under any policy.
    """

    index: int
    id: str
    reason: str
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthIndex:
    """One row per record of a source; records in `skipped` have zeros."""

    ids: list[str]
    tokens: list[int]
    views: list[int]
    words: list[int]
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the whole file or none. Raises EnvError."""
        skipped = json.dumps([asdict(one) for one in self.skipped])
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez_compressed(
                    file,
                    ids=np.frombuffer(json.dumps(self.ids).encode(), np.uint8),
                    sizes=np.array([self.tokens, self.views, self.words], np.int64),
                    skipped=np.frombuffer(skipped.encode(), np.uint8),
                )
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise EnvError(
                f"the length index cannot be written: {error.strerror}",
                where=str(path),
                fix="free the disk, or choose another cache folder",
            ) from error

    @classmethod
    def load(cls, path: Path) -> LengthIndex | None:
        """The stored index, None where there is none or it is damaged (it is made anew then)."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                tokens, views, words = data["sizes"].tolist()
                skipped = [Skipped(**row) for row in json.loads(data["skipped"].tobytes())]
                ids = json.loads(data["ids"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None
        return cls(ids=ids, tokens=tokens, views=views, words=words, skipped=skipped)


def count_words(sample: Sample) -> int:
    """White-space words of all turns, a medium counting as its placeholder would (LLaVA)."""
    return sum(
        len(
            "".join(
                part.text if isinstance(part, Text) else PLACEHOLDER for part in message.parts
            ).split()
        )
        for message in sample.messages
    )


def file_hash(path: Path) -> str:
    """A hash of a file's contents; of a folder, of its HDF5 files' names, sizes and times.

    Of shards: of their names; the files' sizes and times are the caller's.
    """
    if not path.exists() or path.suffix == ".tar":
        return hashlib.blake2b(str(path).encode(), digest_size=16).hexdigest()
    if path.is_dir():
        stats = [(one.name, one.stat()) for one in sorted(path.glob("*.h5"))]
        facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def build_index(
    source: Format,
    processor: Measure,
    *,
    limit: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    on_error: str = "error",
) -> LengthIndex:
    """Measure the first `limit` records of a source.

    on_error "error" raises the first DataError met; "skip" lists the record in `skipped`.
    """
    total = len(source) if limit is None else min(limit, len(source))
    task = _MeasureChunk(source, processor, total=total)
    found = LengthIndex(ids=[], tokens=[], views=[], words=[])
    for chunk in ordered_map(task, range(0, total, CHUNK), workers=workers):
        for index, (id_, tokens, views, words, error) in enumerate(chunk, start=len(found)):
            if error is not None:
                refused = isinstance(error, RefusedError)
                if on_error == "error" and not refused:
                    raise error
                found.skipped.append(
                    Skipped(index=index, id=id_, reason=str(error), refused=refused)
                )
            found.ids.append(id_)
            found.tokens.append(tokens)
            found.views.append(views)
            found.words.append(words)
        if progress is not None:
            progress(len(found), total)
    return found


def cached_index(
    source: Format,
    processor: Measure,
    *,
    path: Path,
    cache: Path | None,
    fingerprint: str,
    limit: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    on_error: str = "error",
) -> LengthIndex:
    """`build_index`, kept under `cache` by the contents of `path` and by `fingerprint`.

    fingerprint: everything else that lengths depend on (processor, media root, format options).
    Pictures are not hashed: one that changes its size under the same name needs a new cache.
    """
    if cache is None:
        return build_index(
            source,
            processor,
            limit=limit,
            workers=workers,
            progress=progress,
            on_error=on_error,
        )
    key = hashlib.blake2b(
        f"{file_hash(path)}/{fingerprint}/{limit}".encode(), digest_size=16
    ).hexdigest()
    stored = cache / f"lengths-{key}.npz"
    index = LengthIndex.load(stored)
    if index is None:
        index = build_index(
            source, processor, limit=limit, workers=workers, progress=progress, on_error="skip"
        )
        index.save(stored)
    elif not all(one.refused for one in index.skipped):
        index = _try_again(index, source, processor)
        index.save(stored)
    broken = next((one for one in index.skipped if not one.refused), None)
    if broken is not None and on_error == "error":
        error = _MeasureChunk(source, processor, total=0).row(broken.index)[-1]
        assert error is not None
        raise error
    return index


def _try_again(index: LengthIndex, source: Format, processor: Measure) -> LengthIndex:
    """The index with its skipped records measured anew: a missing picture may have arrived."""
    task = _MeasureChunk(source, processor, total=len(index))
    skipped = [one for one in index.skipped if one.refused]
    for one in index.skipped:
        if one.refused:
            continue
        k = one.index
        index.ids[k], index.tokens[k], index.views[k], index.words[k], error = task.row(k)
        if error is not None:
            skipped.append(Skipped(index=k, id=index.ids[k], reason=str(error)))
    return replace(index, skipped=skipped)


class _MeasureChunk:
    """Rows (id, tokens, views, words, error) of CHUNK records from a start."""

    def __init__(self, source: Format, processor: Measure, *, total: int) -> None:
        self.source, self.processor, self.total = source, processor, total

    def __call__(self, start: int) -> list[tuple[str, int, int, int, RetinueError | None]]:
        return [self.row(i) for i in range(start, min(start + CHUNK, self.total))]

    def row(self, index: int) -> tuple[str, int, int, int, RetinueError | None]:
        id_ = f"record {index}"
        try:
            sample = self.source[index]
            id_ = sample.id
            tokens, views = self.processor.length(sample)
        except DataError as error:
            return id_, 0, 0, 0, error
        return id_, tokens, views, count_words(sample), None
