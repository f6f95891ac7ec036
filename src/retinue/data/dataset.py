"""From the `data:` branch of a recipe to mixtures, plans and loaders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from retinue.core.errors import DataError
from retinue.data.augment import NoAugment
from retinue.data.blind import Blind
from retinue.data.files import media_root_of, open_file, path_of
from retinue.data.formats import Format
from retinue.data.formats.collection import Share
from retinue.data.index import Measure, Progress, Skipped, cached_index
from retinue.data.loader import Loader, Prepares
from retinue.data.mixture import Mixture, Source, by_share, held_out
from retinue.data.plan import EpochPlan, Schedule, plan_epoch
from retinue.data.spec import DataSpec, SourceSpec
from retinue.data.turns import Turns


class DataProcessor(Measure, Prepares, Protocol):
    """What data asks of a Processor."""

    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Open training and validation mixtures; `skipped`: source name -> what was left out."""

    spec: DataSpec
    processor: DataProcessor
    train: Mixture
    validation: Mixture | None
    skipped: dict[str, list[Skipped]]

    def schedule(self, *, global_batch: int, micro_batch: int = 1) -> Schedule:
        """The training plan; see `plan_epoch` for what the two numbers count."""
        sizes = self.train.sizes

        def plan(epoch: int) -> EpochPlan:
            return plan_epoch(
                sizes,
                self.train.epoch(epoch, seed=self.spec.seed, spec=self.spec.epoch),
                spec=self.spec,
                epoch=epoch,
                global_batch=global_batch,
                micro_batch=micro_batch,
            )

        return Schedule(plan)

    def loader(self, schedule: Schedule, *, rank: int = 0, world: int = 1) -> Loader:
        """A rank's loader over the training mixture."""
        return Loader(
            self.train,
            processor=self.processor,
            schedule=schedule,
            spec=self.spec,
            rank=rank,
            world=world,
        )

    def validation_loader(self, *, micro_batch: int, rank: int = 0, world: int = 1) -> Loader:
        """A rank's loader over the held-out samples, in file order; read it with `epoch()`."""
        assert self.validation is not None
        mixture = self.validation
        spec = self.spec.model_copy(
            update={"sampler": "sequential", "drop_last": False, "augment": NoAugment()}
        )
        sizes = mixture.sizes

        def plan(epoch: int) -> EpochPlan:
            return plan_epoch(
                sizes,
                range(len(sizes)),
                spec=spec,
                epoch=0,
                global_batch=micro_batch * world,
                micro_batch=micro_batch,
            )

        return Loader(
            mixture,
            processor=self.processor,
            schedule=Schedule(lambda epoch: replace(plan(epoch), epoch=epoch)),
            spec=spec,
            rank=rank,
            world=world,
        )


def open_dataset(
    spec: DataSpec,
    processor: DataProcessor,
    *,
    root: str | Path = ".",
    cache: Path | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> Dataset:
    """Open and measure every source of a recipe.

    root: relative paths are looked up here. cache: folder that keeps the lengths; without one they
    are measured anew. progress: source name -> callback.
    Raises DataError for unreadable or empty sources, and for broken samples under on_error: error.
    """

    def opened(sources: Sequence[SourceSpec]) -> list[Source]:
        found = [
            open_source(
                one,
                processor,
                spec=spec,
                root=Path(root),
                cache=cache,
                progress=progress(one.path) if progress else None,
            )
            for one in sources
        ]
        shares = [one.share for one in sources if one.share is not None]
        found = by_share(found, shares) if shares else found
        by_ratio = spec.epoch is not None
        return [part for one in found for part in parts_of(one, by_ratio=by_ratio)]

    sources = opened(spec.sources)
    skipped = {source.name: source.index.skipped for source in sources}
    if isinstance(spec.validation, str):
        train, held = (
            sources,
            opened([SourceSpec(path=spec.validation, media_root=spec.validation_root)]),
        )
        skipped |= {source.name: source.index.skipped for source in held}
    elif spec.validation is not None:
        train = [_side(source, spec=spec, held=False) for source in sources]
        held = [_side(source, spec=spec, held=True) for source in sources]
    else:
        train, held = sources, []
    for name, mixture in (("training", train), ("validation", held)):
        if not any(source.rows for source in mixture) and (mixture or name == "training"):
            raise DataError(
                f"no {name} sample",
                where=", ".join(source.name for source in sources),
                rule=f"{sum(len(rows) for rows in skipped.values())} were skipped, "
                f"validation is {spec.validation}",
                fix="add data, or change 'validation'",
            )
    return Dataset(
        spec=spec,
        processor=processor,
        train=Mixture(train),
        validation=Mixture(held) if held else None,
        skipped=skipped,
    )


def open_source(
    source: SourceSpec,
    processor: DataProcessor,
    *,
    spec: DataSpec,
    root: Path = Path("."),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Source:
    """Open one file, measure it, and leave out what the error policy skips."""
    path, media_root = path_of(source, root=root), media_root_of(source, root=root)
    file = open_file(source, root=root)
    about = f"{processor.fingerprint()}/{source.format}/{media_root}/{source.empty_answers}"
    for other in getattr(file, "files", ()):  # a list of files is also as new as these
        about += f"/{other}:{other.stat().st_size}:{other.stat().st_mtime_ns}"
    if source.web is not None:
        about += f"/{source.web.model_dump_json()}"
    shares: Sequence[Share] = getattr(file, "shares", ())
    if source.blind:
        file = cast(Format, Blind(file))
        about += "/blind"
    turns = None
    measured = file
    if source.turns is not None:
        weighed = shares if spec.epoch is not None else ()
        turns = Turns(file, source.turns, shares=weighed)
        if spec.packing != "none" or spec.overlong != "truncate" or spec.max_views:
            measured = cast(Format, turns)
            about += f"/{source.turns.model_dump_json()}/{[share.ratio for share in weighed]}"
        file = cast(Format, turns)  # read like one, never opened by name
    # where no length decides anything, records are measured and conversations estimated
    index = cached_index(
        measured,
        processor,
        path=path,
        cache=cache,
        fingerprint=hashlib.blake2b(about.encode(), digest_size=16).hexdigest(),
        limit=source.limit,
        workers=spec.workers,
        progress=progress,
        on_error=spec.on_error,
    )
    if turns is not None and measured is not file:
        index = turns.estimated(index, max_tokens=spec.max_tokens)
    broken = {one.index for one in index.skipped}
    return Source(
        name=source.path,
        format=file,
        index=index,
        rows=[row for row in range(len(index)) if row not in broken],
        ratio=source.ratio,
        type=source.type,
        shares=shares,
    )


def parts_of(source: Source, *, by_ratio: bool) -> list[Source]:
    """The data sets of a file as sources of their own; their ratios count if `by_ratio`."""
    if not source.shares:
        return [source]
    rows = set(source.rows)
    return [
        replace(
            source,
            name=f"{source.name}: {share.name}",
            rows=[row for row in share.rows if row in rows],
            ratio=source.ratio * share.ratio if by_ratio else source.ratio,
            type=source.type or share.name,
            shares=(),
        )
        for share in source.shares
    ]


def _side(source: Source, *, spec: DataSpec, held: bool) -> Source:
    """The held-out or the remaining records of a source."""
    assert isinstance(spec.validation, float)
    fraction = spec.validation
    ids = source.index.ids
    rows = [
        row for row in source.rows if held_out(ids[row], fraction=fraction, seed=spec.seed) == held
    ]
    return replace(source, rows=rows)
