"""One worker's share of a preparation: chunks of records in, files of rows out, restartable.

Chunk c belongs to lane c % lanes. After every file the lane's journal says which chunk comes next,
so that a run that was killed goes on there: a file is renamed into place before its journal is, and
written anew with the same content if the run died in between.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retinue.core.errors import DataError, RetinueError
from retinue.core.files import write_json
from retinue.data.prepare.finetune import Finetuning
from retinue.data.prepare.hooks import Hook
from retinue.data.prepare.inputs import Record
from retinue.data.prepare.pretrain import Open, Pretraining
from retinue.data.prepare.regions import Count, SkipError
from retinue.data.prepare.rows import Row
from retinue.data.prepare.writer import write_file


@dataclass(slots=True, kw_only=True)
class Journal:
    """What a lane has done. targets: of the shuffled files, one for each part written."""

    next_chunk: int
    files: int = 0
    done: bool = False
    stats: Counter[str] = field(default_factory=Counter)
    skipped: list[list[str]] = field(default_factory=list)
    left: dict[str, Any] | None = None
    random: list[Any] | None = None

    def save(self, path: Path) -> None:
        """Write atomically."""
        data = {name: getattr(self, name) for name in self.__slots__}
        part = path.with_suffix(".part")
        write_json(part, {**data, "stats": dict(self.stats)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Journal | None:
        if not path.exists():
            return None
        data = json.loads(path.read_text("utf-8"))
        return cls(**{**data, "stats": Counter(data["stats"])})


@dataclass(slots=True, kw_only=True)
class Lane:
    """Settings of a lane; `shuffled`: number of files that rows are dealt to, None = in order.

    exact: a broken record ends its file, and takes with it what was not yet written, as in the
    original; else it is skipped, counted and listed. limit: such records before giving up.
    """

    number: int
    lanes: int
    out: Path
    generator: Finetuning | Pretraining
    hook: Hook
    kwargs: dict[str, Any]
    columns: list[str]
    write_bytes: int
    multimodal: bool
    exact: bool = False
    shuffled: int | None = None
    seed: int = 0
    tell: Callable[[int, int], None] = lambda records, size: None
    journal: Journal = field(init=False)
    rows: list[Row] = field(init=False, default_factory=list)
    held: int = field(init=False, default=0)
    bad: Path | None = field(init=False, default=None)
    random: np.random.RandomState = field(init=False)

    @property
    def journal_path(self) -> Path:
        return self.out / f".lane-{self.number}.json"

    def run(self, chunks: Iterable[tuple[int, Path, list[Record]]]) -> Journal:
        """All chunks of this lane that are not done yet."""
        random = np.random.RandomState(self.seed + self.number)
        self.journal = Journal.load(self.journal_path) or Journal(next_chunk=self.number)
        if self.journal.random is not None:
            keys, place, gauss, cached = self.journal.random
            random.set_state(("MT19937", np.array(keys, np.uint32), place, gauss, cached))
        if isinstance(self.generator, Pretraining) and self.journal.left is not None:
            self.generator.left = Open.of(self.journal.left)
        self.random = random
        if self.journal.done:
            return self.journal
        for number, path, records in chunks:
            if number % self.lanes != self.number or number < self.journal.next_chunk:
                continue
            if path != self.bad:
                self.rows += self.chunk(path, records)
            size = sum(record.size for record in records)
            self.held += size
            self.tell(len(records), size)
            if self.held >= self.write_bytes:
                self.flush(next_chunk=number + self.lanes)
        self.flush(next_chunk=-1, last=True)
        return self.journal

    def chunk(self, path: Path, records: list[Record]) -> list[Row]:
        """Rows of a chunk's records; in exact runs hooks come first, one error ends the file."""
        turns, stats = [], self.journal.stats
        for record in records:
            try:
                data = record.load()
                kept = {name: data.get(name) for name in self.columns}
                turns.append((record, self.hook(kept, **self.kwargs)))
            except (RetinueError, KeyError, TypeError, ValueError, AttributeError) as error:
                if self.exact:
                    self.bad = path
                    self.journal.skipped.append([str(path), f"the rest of the file: {error}"])
                    return []
                stats["broken_records"] += 1
                self.journal.skipped.append([record.place, str(error)])
        rows: list[Row] = []
        for record, found in turns:
            rows += self.sample(record, found)
        return rows

    def sample(self, record: Record, turns: list[dict[str, Any]]) -> list[Row]:
        """Rows of one record, counted."""
        stats, count = self.journal.stats, Count()
        stats["total_raw_docs"] += 1
        try:
            rows = self.generator.rows(turns, count)
        except SkipError as skip:
            self.journal.skipped.append([record.place, str(skip)])
            for name in skip.counts:
                stats[name] += 1
            if skip.measured:
                self.measure(count)
            return []
        except (RetinueError, KeyError, TypeError, AttributeError) as error:
            if self.exact:
                raise DataError(str(error), where=record.place) from error
            stats["broken_records"] += 1
            self.journal.skipped.append([record.place, str(error)])
            return []
        stats["processed_files"] += 1
        stats["successful_files"] += 1
        self.measure(count)
        return rows

    def measure(self, count: Count) -> None:
        """Add a sample's characters and bytes."""
        stats = self.journal.stats
        stats["raw_chars_count"] += count.raw_chars
        stats["raw_bytes_count"] += count.raw_bytes
        stats["normalized_chars_count"] += count.chars
        stats["normalized_bytes_count"] += count.bytes

    def flush(self, *, next_chunk: int, last: bool = False) -> None:
        """Write the rows held, then say so."""
        journal, rows = self.journal, self.rows
        if rows:
            self.count(rows)
            journal.files += 1
            if self.shuffled is None:
                name = f"output_chunk_{self.number}_{journal.files}.h5"
                write_file(self.out / name, rows, multimodal=self.multimodal)
            else:
                self.deal(rows)
        if last and isinstance(self.generator, Pretraining):
            rest = self.generator.rest()
            if rest is not None:
                self.count([rest])
                name = f"output_chunk_{self.number}_prefix.h5"
                write_file(self.out / name, [rest], multimodal=self.multimodal)
        if isinstance(self.generator, Pretraining):
            journal.left = self.generator.left.state()
        self.rows, self.held = [], 0
        journal.next_chunk, journal.done = next_chunk, last
        journal.save(self.journal_path)

    def deal(self, rows: list[Row]) -> None:
        """Rows to the shuffled files: parts that a last pass puts together."""
        assert self.shuffled is not None
        targets = self.random.choice(np.arange(self.shuffled), len(rows))
        for target in np.unique(targets):
            chosen = [row for row, to in zip(rows, targets, strict=True) if to == target]
            name = f".part-{target}-{self.number:04d}-{self.journal.files:06d}.h5"
            write_file(self.out / name, chosen, multimodal=self.multimodal)
        state: Any = self.random.get_state()
        _, keys, place, gauss, cached = state
        self.journal.random = [keys.tolist(), int(place), int(gauss), float(cached)]

    def count(self, rows: list[Row]) -> None:
        """Token statistics of rows that are written."""
        stats = self.journal.stats
        for row in rows:
            length = row.data.shape[1]
            valid = int((row.data[1] != 0).sum())
            pads = int((row.data[0] == self.generator.sizes.pad).sum())
            stats["n_examples"] += 1
            stats["num_tokens"] += length
            stats["num_pad_tokens"] += pads
            stats["non_pad_tokens"] += length - pads
            stats["loss_valid_tokens"] += valid
            stats["num_masked_tokens"] += length - valid
