"""Several sources as one sequence of samples, and which of them an epoch visits how often."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from retinue.core.seed import stream_seed
from retinue.data.draw import EpochSpec, counts_of, drawn
from retinue.data.formats import Format
from retinue.data.formats.collection import Share
from retinue.data.index import LengthIndex
from retinue.data.sampler import Sizes, permutation
from retinue.types import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An open file, its lengths, the records in use, and its weight in the mixture.

    shares: the data sets of a file that holds several.
    """

    name: str
    format: Format
    index: LengthIndex
    rows: Sequence[int]
    ratio: float = 1.0
    type: str | None = None
    shares: Sequence[Share] = ()


class Mixture:
    """The samples in use of all sources, numbered through; reading one decodes no picture."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._starts = [0, *accumulate(len(source.rows) for source in self.sources)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        source, row = self._locate(index)
        return source.format[row]

    def _locate(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._starts, index) - 1
        source = self.sources[number]
        return source, source.rows[index - self._starts[number]]

    def id(self, index: int) -> str:
        """The id of a sample without reading it."""
        source, row = self._locate(index)
        return source.index.ids[row]

    def kind(self, index: int) -> str | None:
        """The type of a sample."""
        source, row = self._locate(index)
        return type_of(source, row)

    @property
    def sizes(self) -> Sizes:
        """Lengths of all samples, in order."""
        picked = [(source, row) for source in self.sources for row in source.rows]
        return Sizes(
            tokens=[source.index.tokens[row] for source, row in picked],
            views=[source.index.views[row] for source, row in picked],
            words=[source.index.words[row] for source, row in picked],
            types=[type_of(source, row) for source, row in picked],
        )

    def epoch(self, epoch: int, *, seed: int = 0, spec: EpochSpec | None = None) -> list[int]:
        """The samples of an epoch: `spec.samples` of them, or as their source's ratio says.

        Ratio 2 lists each sample twice. Ratio 0.5 takes half of the source and the other half in
        the next epoch: the epochs cut one endless cycle over a fixed permutation, so no sample is
        ever more than one visit ahead of another.
        """
        chosen: list[int] = []
        first = 0
        if spec is not None:
            sizes = [len(source.rows) for source in self.sources]
            counts = counts_of(sizes, [source.ratio for source in self.sources], spec=spec)
            for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
                own = drawn(size, count, epoch=epoch, spec=spec, seed=seed, number=number)
                chosen += sorted(first + k for k in own)
                first += size
            return chosen
        for number, source in enumerate(self.sources):
            n = len(source.rows)
            start, stop = round(epoch * source.ratio * n), round((epoch + 1) * source.ratio * n)
            if source.ratio == int(source.ratio):
                cycle = list(range(n))
            else:
                cycle = permutation(
                    n, torch.Generator().manual_seed(stream_seed(seed, "ratio", number))
                )
            chosen += sorted(first + cycle[k % n] for k in range(start, stop)) if n else []
            first += n
        return chosen


def by_share(sources: Sequence[Source], shares: Sequence[float]) -> list[Source]:
    """The sources with ratios by which each gives its share of an epoch's tokens.

    The epoch is the shortest that visits every record of every source.
    """
    held = [sum(source.index.tokens[row] for row in source.rows) for source in sources]
    whole = max(tokens / share for tokens, share in zip(held, shares, strict=True))
    return [
        replace(source, ratio=whole * share / tokens) if tokens else source
        for source, share, tokens in zip(sources, shares, held, strict=True)
    ]


def type_of(source: Source, row: int) -> str | None:
    """The type of a record: its source's, or its own in a format that has one for each."""
    own: Sequence[str] | None = getattr(source.format, "types", None)
    return own[row] if source.type is None and own is not None else source.type


def held_out(sample_id: str, *, fraction: float, seed: int = 0) -> bool:
    """Whether a sample belongs to the validation split: a pure function of its id.

    Samples with the same id fall on the same side, and adding data moves none of the others.
    """
    return stream_seed(seed, "validation", sample_id) < fraction * 2**63
