"""What a check found: as data, as JSON, and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SHOWN = 20
QUANTILES = {"min": 0.0, "p05": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing to mend. kind: file, record, placeholders, empty answer, picture, no target,
    conversation (the template refuses it) or truncation; index: record of the source."""

    kind: str
    index: int | None
    id: str | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """A file, its counts, its problems and how many of each kind."""

    path: str
    records: int
    pictures: int
    problems: list[Problem]
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """A folder below a media root: files that records want, those there, there under another
    suffix, and missing; examples: the first missing ones."""

    folder: str
    wanted: int
    found: int
    other_suffix: int
    missing: int
    examples: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The result of `check`. Quantile tables are empty where nothing was measured.

    truncated: samples above max_tokens; duplicates: ids that occur more than once (no problem in
    itself); packing: budget, packs, samples_per_pack, and the share of useful positions `packed`
    and `padded` (micro-batches of 8); folders: of the media root, where it was looked through;
    refused: records that their source's own rules leave out, which is no problem.
    """

    sources: list[SourceReport]
    records: int
    good: int
    truncated: int
    duplicates: list[str]
    tokens: dict[str, float]
    targets: dict[str, float]
    image_tokens: dict[str, float]
    pictures: dict[str, float]
    packing: dict[str, float]
    folders: list[FolderReport] = field(default_factory=list)
    refused: int = 0

    @property
    def problems(self) -> list[Problem]:
        return [problem for source in self.sources for problem in source.problems]

    @property
    def ok(self) -> bool:
        """Whether training would meet no data error."""
        return not self.problems and self.records > self.refused

    def json(self) -> dict[str, Any]:
        """Everything, with `ok` and the number of problems, ready for json.dump."""
        return {"ok": self.ok, "num_problems": len(self.problems), **asdict(self)}

    def __rich__(self) -> RenderableType:
        return Group(*self._tables())

    def _tables(self) -> Iterator[RenderableType]:
        sources = Table("source", "records", "pictures", "problems", title="Data check")
        for source in self.sources:
            kinds = ", ".join(f"{count} {kind}" for kind, count in source.kinds.items())
            sources.add_row(source.path, f"{source.records}", f"{source.pictures}", kinds or "none")
        yield sources
        if self.folders:
            yield self._folders()
        rows = {
            "tokens per sample": self.tokens,
            "targets per sample": self.targets,
            "tokens per picture": self.image_tokens,
            "pictures per sample": self.pictures,
        }
        if any(rows.values()):
            table = Table("", *QUANTILES, "mean")
            for name, values in rows.items():
                if values:
                    table.add_row(name, *(f"{values[key]:g}" for key in QUANTILES), _mean(values))
            yield table
        if self.packing:
            yield Text(
                f"packing into {self.packing['budget']:.0f} tokens: "
                f"{self.packing['packs']:.0f} packs of {self.packing['samples_per_pack']:.1f} "
                f"samples, {self.packing['packed']:.1%} of positions used "
                f"(padded batches of 8: {self.packing['padded']:.1%})"
            )
        if self.truncated:
            yield Text(f"{self.truncated} samples are longer than max_tokens", style="yellow")
        if self.refused:
            yield Text(f"{self.refused} records are left out by the source's own rules")
        if self.duplicates:
            some = ", ".join(self.duplicates[:5])
            yield Text(f"{len(self.duplicates)} ids occur more than once: {some}", style="yellow")
        for problem in self.problems[:SHOWN]:
            yield Text.assemble((f"{problem.kind}: ", "bold red"), problem.message)
        if len(self.problems) > SHOWN:
            yield Text(f"... and {len(self.problems) - SHOWN} more problems (all in the JSON)")
        verdict = f"{self.good} of {self.records} samples are fit for training"
        yield Text(verdict, style="green" if self.ok else "bold red")

    def _folders(self) -> Table:
        table = Table("folder", "wanted", "found", "other suffix", "missing", title="Media root")
        for row in self.folders:
            counts = (row.wanted, row.found, row.other_suffix, row.missing)
            table.add_row(row.folder, *(f"{count}" for count in counts))
        return table


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Quantiles that are values of the sample (none interpolated), mean, sum and count."""
    if not values:
        return {}
    data = np.asarray(values)
    found = {
        name: float(np.quantile(data, q, method="inverted_cdf")) for name, q in QUANTILES.items()
    }
    return {**found, "mean": float(data.mean()), "sum": float(data.sum()), "count": len(values)}


def _mean(values: dict[str, float]) -> str:
    return f"{values['mean']:.1f}"
