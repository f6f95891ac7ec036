"""Pre-flight over a data set: every problem of every sample, and what the samples cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError, MediaError
from retinue.data.dataset import DataProcessor
from retinue.data.files import open_file
from retinue.data.formats import Format
from retinue.data.formats.base import EmptyAnswerError, PlaceholderError, RefusedError
from retinue.data.index import Progress, count_words
from retinue.data.packing import efficiency
from retinue.data.plan import EpochPlan, plan_epoch
from retinue.data.report import CheckReport, Problem, SourceReport, quantiles
from retinue.data.sampler import Sizes
from retinue.data.spec import DataSpec, SourceSpec
from retinue.data.truncate import truncate
from retinue.data.workers import ordered_map
from retinue.media.frames import Frames
from retinue.media.image import image_size, load_image
from retinue.types import Media, Sample

CHUNK = 16


@dataclass(slots=True, kw_only=True)
class _Row:
    """What was found out about one record."""

    id: str
    problems: list[tuple[str, str]] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    pictures: int = 0
    views: int = 0
    words: int = 0
    image_tokens: list[int] = field(default_factory=list)
    truncated: bool = False
    refused: bool = False


def check(
    spec: DataSpec,
    processor: DataProcessor | None = None,
    *,
    root: str | Path = ".",
    decode: bool = True,
    progress: Callable[[str], Progress] | None = None,
) -> CheckReport:
    """Read every record of every source and collect all problems, never stopping at one.

    processor: the model's, for token counts, targets and truncation; without it only files, records
    and pictures are checked. decode: decode every picture, so that truncated files are found; else
    read headers. root: folder of relative paths. progress: source path -> callback.
    """
    reports: list[SourceReport] = []
    rows: list[_Row] = []
    for source in spec.sources:
        tick = progress(source.path) if progress else None
        found, problems = _check_source(
            source, processor, spec=spec, root=Path(root), decode=decode, tick=tick
        )
        kinds = Counter(problem.kind for problem in problems)
        reports.append(
            SourceReport(
                path=source.path,
                records=len(found),
                pictures=sum(row.pictures for row in found),
                problems=problems,
                kinds=dict(sorted(kinds.items())),
            )
        )
        rows += found
    good = [row for row in rows if not row.problems and not row.refused]
    ids = Counter(row.id for row in rows)
    measured = good if processor is not None else []
    return CheckReport(
        sources=reports,
        records=len(rows),
        good=len(good),
        truncated=sum(row.truncated for row in rows),
        refused=sum(row.refused for row in rows),
        duplicates=sorted(id_ for id_, count in ids.items() if count > 1),
        tokens=quantiles([row.tokens for row in measured]),
        targets=quantiles([row.targets for row in measured]),
        image_tokens=quantiles([n for row in measured for n in row.image_tokens]),
        pictures=quantiles([row.pictures for row in good]),
        packing=_packing(measured, spec=spec),
    )


def _check_source(
    source: SourceSpec,
    processor: DataProcessor | None,
    *,
    spec: DataSpec,
    root: Path,
    decode: bool,
    tick: Progress | None,
) -> tuple[list[_Row], list[Problem]]:
    try:
        file = open_file(source, root=root)
    except DataError as error:
        return [], [Problem(kind="file", index=None, id=None, message=str(error))]
    total = min(len(file), source.limit or len(file))
    task = _CheckChunk(file, processor, total=total, spec=spec, decode=decode)
    rows: list[_Row] = []
    for chunk in ordered_map(task, range(0, total, CHUNK), workers=spec.workers):
        rows += chunk
        if tick is not None:
            tick(len(rows), total)
    problems = [
        Problem(kind=kind, index=i, id=row.id, message=message)
        for i, row in enumerate(rows)
        for kind, message in row.problems
    ]
    return rows, problems


class _CheckChunk:
    """Rows of CHUNK records from a start; runs in the workers."""

    def __init__(
        self,
        file: Format,
        processor: DataProcessor | None,
        *,
        total: int,
        spec: DataSpec,
        decode: bool,
    ) -> None:
        self.file, self.processor, self.total = file, processor, total
        self.spec, self.decode = spec, decode

    def __call__(self, start: int) -> list[_Row]:
        return [self._row(i) for i in range(start, min(start + CHUNK, self.total))]

    def _row(self, index: int) -> _Row:
        try:
            sample = self.file[index]
        except RefusedError:
            return _Row(id=self.file.where(index), refused=True)
        except DataError as error:
            return _Row(id=f"record {index}", problems=[(_kind(error), str(error))])
        row = _Row(id=sample.id, words=count_words(sample), pictures=len(sample.media))
        row.problems += self._pictures(sample)
        if not any(m.role == "assistant" and m.train is not False for m in sample.messages):
            message = f"{self.file.where(index)} (sample {sample.id!r}): no assistant turn to train"
            row.problems.append(("no target", message))
        if self.processor is not None and not row.problems:
            self._measure(row, sample, self.processor)
        return row

    def _pictures(self, sample: Sample) -> Iterator[tuple[str, str]]:
        for medium in sample.media:
            try:
                look(medium, where=f"sample {sample.id}", decode=self.decode)
            except MediaError as error:
                yield "picture", str(error)

    def _measure(self, row: _Row, sample: Sample, processor: DataProcessor) -> None:
        try:
            example = processor.example(sample, train=True, pixels=False)
            row.tokens, row.targets = len(example.tokens), example.num_supervised
            row.image_tokens = [item.num_tokens for item in example.items]
            row.views = sum(item.grid.num_views for item in example.items)
            limit = self.spec.max_tokens
            if not row.targets:
                row.problems.append(("no target", f"sample {sample.id!r}: no supervised token"))
            elif limit is not None and row.tokens > limit:
                row.truncated = True
                truncate(example, max_tokens=limit)
        except DataError as error:
            row.problems.append(("truncation" if row.truncated else "conversation", str(error)))


def look(medium: Media, *, where: str, decode: bool) -> None:
    """Raise MediaError for a picture or video that cannot be read; decode: the pixels too."""
    source: Any = medium.source
    if medium.kind == "video":
        policy = Frames()
        (policy.pictures if decode else policy.blanks)(source, where=where)
    else:
        (load_image if decode else image_size)(source, where=where)


def _kind(error: DataError) -> str:
    if isinstance(error, PlaceholderError):
        return "placeholders"
    return "empty answer" if isinstance(error, EmptyAnswerError) else "record"


def _packing(rows: list[_Row], *, spec: DataSpec) -> dict[str, float]:
    """Share of computed positions that hold tokens: padded by 8 in random order, and packed."""
    if not rows:
        return {}
    budget = spec.max_tokens or max(row.tokens for row in rows)
    tokens = [min(row.tokens, budget) for row in rows]
    sizes = Sizes(
        tokens=tokens,
        views=[row.views for row in rows],
        words=[row.words for row in rows],
        types=[None] * len(rows),
    )

    def plan(packing: str) -> EpochPlan:
        changes = {"packing": packing, "max_tokens": budget, "overlong": "skip"}
        trial = spec.model_copy(update=changes)
        return plan_epoch(
            sizes, range(len(rows)), spec=trial, epoch=0, global_batch=8, micro_batch=8
        )

    padded = [micro for step in plan("none").steps for micro in step]
    packs = [pack for step in plan("window").steps for pack in step]
    area = sum(max(tokens[i] for i in micro) * len(micro) for micro in padded)
    used = sum(tokens[i] for micro in padded for i in micro)
    return {
        "budget": float(budget),
        "packs": float(len(packs)),
        "samples_per_pack": len(rows) / max(len(packs), 1),
        "packed": efficiency(packs, tokens, max_tokens=budget),
        "padded": used / area if area else 1.0,
    }
