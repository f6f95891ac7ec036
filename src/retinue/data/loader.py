"""Batches of a rank from any global step on, prepared by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, cast

from retinue.core.errors import DataError
from retinue.data.index import Skipped
from retinue.data.plan import MicroBatch, Schedule
from retinue.data.spec import DataSpec
from retinue.data.truncate import truncate
from retinue.data.workers import ordered_map
from retinue.types import IGNORE, Batch, Example, Sample


class Samples(Protocol):
    """A sequence of samples: a mixture, a format, a list."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


class Prepares(Protocol):
    """The part of the Processor that the loader needs."""

    def example(self, sample: Sample, *, train: bool = False, pixels: bool = True) -> Example: ...

    def collate(
        self,
        examples: Sequence[Example],
        *,
        train: bool = False,
        packed: bool = False,
    ) -> Batch: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """What a worker is asked for: a micro-batch, and whether a step ends with it."""

    step: int
    epoch: int
    micro: MicroBatch
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """What a worker returns; errors travel as values, so that their class survives."""

    key: _Key
    batch: Batch | None
    skipped: list[Skipped]
    error: DataError | None = None


class Loader:
    """A rank's micro-batches in plan order, whatever the number of workers.

    schedule: the plan of every epoch; rank, world: this rank's share of each step.
    spec: max_tokens (longer examples are truncated), packing (rows or packs), on_error, workers.
    Iterating starts at the position (`seek`) and never ends; `state()` is the next global step.
    `skipped`: the samples left out so far (on_error: skip), each once; `num_skipped`: how often.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        processor: Prepares,
        schedule: Schedule,
        spec: DataSpec,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
    ) -> None:
        assert 0 <= rank < world
        self.samples, self.processor, self.schedule, self.spec = (
            samples,
            processor,
            schedule,
            spec,
        )
        self.rank, self.world, self.prefetch = rank, world, prefetch
        self.num_skipped = 0
        self._skipped: dict[int, Skipped] = {}
        self._step = 0

    @property
    def skipped(self) -> list[Skipped]:
        return list(self._skipped.values())

    def seek(self, step: int) -> None:
        """Go on from global step `step`; running iterations are not affected."""
        self._step = step

    def state(self) -> dict[str, int]:
        """{"step": the first global step not yet handed out}; no rank, no worker in it."""
        return {"step": self._step}

    def load_state(self, state: dict[str, Any]) -> None:
        self.seek(int(state["step"]))

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches, endlessly. The position moves on with the last one of each step."""
        for loaded in self._stream(self._step):
            if loaded.key.last:
                self._step = loaded.key.step + 1
            assert loaded.batch is not None
            yield loaded.batch

    def steps(self, stop: int | None = None) -> Iterator[tuple[int, list[Batch]]]:
        """(global step, its micro-batches for this rank), up to but without step `stop`."""
        held: list[Batch] = []
        for loaded in self._stream(self._step, stop):
            assert loaded.batch is not None
            held.append(loaded.batch)
            if loaded.key.last:
                self._step = loaded.key.step + 1
                yield loaded.key.step, held
                held = []

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The micro-batches of one epoch, for evaluation; the position stays."""
        start, stop = self.schedule.num_steps(epoch), self.schedule.num_steps(epoch + 1)
        for loaded in self._stream(start, stop):
            assert loaded.batch is not None
            yield loaded.batch

    def _keys(self, start: int, stop: int | None) -> Iterator[_Key]:
        for step in count(start) if stop is None else range(start, stop):
            share = self.schedule.shard(step, rank=self.rank, world=self.world)
            epoch, _ = self.schedule.locate(step)
            for m, micro in enumerate(share):
                yield _Key(step=step, epoch=epoch, micro=micro, last=m == len(share) - 1)

    def _stream(self, start: int, stop: int | None = None) -> Iterator[_Loaded]:
        task = _Prepare(self.samples, self.processor, self.spec)
        keys = self._keys(start, stop)
        for loaded in ordered_map(task, keys, workers=self.spec.workers, prefetch=self.prefetch):
            self.num_skipped += len(loaded.skipped)
            self._skipped |= {one.index: one for one in loaded.skipped}
            if loaded.error is not None:
                raise loaded.error
            yield loaded


class _Prepare:
    """A key -> its batch; runs in the workers."""

    def __init__(self, samples: Samples, processor: Prepares, spec: DataSpec) -> None:
        self.samples, self.processor, self.spec = samples, processor, spec

    def __call__(self, key: _Key) -> _Loaded:
        skipped: list[Skipped] = []
        examples: list[Example] = []
        kinds: list[str | None] = []
        kind_of = getattr(self.samples, "kind", lambda index: None)
        filler = key.micro.filler
        try:
            for index in key.micro.samples:
                example = self._example(index, skipped, epoch=key.epoch)
                if example is not None:
                    examples.append(example)
                    kinds.append(kind_of(index))
            if not examples:
                filler = True
                examples.append(self._stand_in(key.micro.samples[0], skipped, epoch=key.epoch))
                kinds.append(kind_of(key.micro.samples[0]))
            if filler:
                examples = [replace(one, labels=[IGNORE] * len(one.labels)) for one in examples]
            batch = self.processor.collate(examples, train=True, packed=self.spec.packing != "none")
            batch = replace(batch, kinds=kinds)
        except DataError as error:
            return _Loaded(key=key, batch=None, skipped=skipped, error=error)
        return _Loaded(key=key, batch=batch, skipped=[] if key.micro.filler else skipped)

    def _example(self, index: int, skipped: list[Skipped], *, epoch: int) -> Example | None:
        """The example, or None with a line in `skipped` where the policy allows it."""
        id_ = f"sample {index} of the mixture"
        try:
            sample = self.samples[index]
            id_ = sample.id
            sample = self.spec.augment.apply(
                sample,
                seed=self.spec.seed,
                epoch=epoch,
                index=index,
                processor=cast(Any, self.processor),
            )
            example = self.processor.example(sample, train=True)
            if self.spec.max_tokens is not None:
                example = truncate(example, max_tokens=self.spec.max_tokens)
            example = self.spec.fill.apply(example, processor=cast(Any, self.processor))
        except DataError as error:
            if self.spec.on_error == "error":
                raise
            skipped.append(Skipped(index=index, id=id_, reason=str(error)))
            return None
        return example

    def _stand_in(self, index: int, skipped: list[Skipped], *, epoch: int) -> Example:
        """The next sample that works, where all of a micro-batch failed. Its labels are removed."""
        ignored = list(skipped)
        for offset in range(1, len(self.samples)):
            other = (index + offset) % len(self.samples)
            example = self._example(other, ignored, epoch=epoch)
            if example is not None:
                return example
        raise DataError(
            "no sample can be read",
            rule=ignored[-1].reason if ignored else None,
            fix="run: retinue data check",
        )
