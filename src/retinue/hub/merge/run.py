"""Checkpoints -> one folder, tensor by tensor: never more than one tensor of each in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.detect import json_if_there
from retinue.core.errors import CheckpointError, ConfigError
from retinue.core.files import versions, write_json
from retinue.hub.files import SHARD_BYTES, ShardWriter, whole_folder
from retinue.hub.load import make_processor
from retinue.hub.merge.base import Part
from retinue.hub.merge.check import compare, require_alike
from retinue.hub.merge.report import Distances, MergeReport
from retinue.hub.merge.spec import MergeSpec, SourceSpec, as_spec
from retinue.hub.merge.tensors import Checkpoint, open_checkpoint
from retinue.hub.save import write_settings
from retinue.hub.section import SHORT
from retinue.hub.stream import Fingerprint

Progress = Callable[[int, int], None]
RESULT = "merged"
"""Column of the report that stands for what was written."""


def merge(
    spec: MergeSpec | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> MergeReport:
    """Merge checkpoints as a recipe says and write a retinue folder, whole or not at all.

    out: None only compares. shard_bytes: largest weight file, and what is held beside one tensor of
    each checkpoint. progress(done, total) is called after each tensor. Sums are made in float32;
    results have the dtype of the first checkpoint (of base, if there is one) unless `dtype` is set.
    Raises ConfigError for a recipe that does not fit together, CheckpointError for folders that
    cannot be merged, EnvError without room.
    """
    return Merge(as_spec(spec, where="merge")).run(out, shard_bytes=shard_bytes, progress=progress)


class Merge:
    """One merge: opened checkpoints and what is known of them before a tensor is read.

    first: base, or else the first source; names, shapes and settings of the result are its own.
    """

    def __init__(self, spec: MergeSpec) -> None:
        spec.check()
        self.spec = spec
        self.base = None if spec.base is None else _open(spec.base, spec.base.name or "base")
        self.sources = [
            _open(source, label) for source, label in zip(spec.sources, spec.labels, strict=True)
        ]
        self.first = self.base or self.sources[0]
        for source in spec.sources:
            source.check(list(self.first.shapes))
        others = [source for source in self.sources if source is not self.first]
        found = compare(self.first, others, used=self._used, accept=spec.accept)
        require_alike(found)
        self.notes = found.notes
        self.notes += [
            f"{len(checkpoint.unused)} tensors of {checkpoint.label} are no part of the model: "
            + ", ".join(checkpoint.unused[:4])
            for checkpoint in [self.first, *others]
            if checkpoint.unused
        ]

    @property
    def dtype(self) -> torch.dtype | None:
        """What the recipe asks for."""
        named = self.spec.dtype
        found: torch.dtype | None = getattr(torch, SHORT.get(named, named)) if named else None
        return found

    def _used(self, checkpoint: Checkpoint, name: str) -> bool:
        place = next(n for n, source in enumerate(self.sources) if source is checkpoint)
        return self.spec.sources[place].weight_of(name) != 0

    def run(
        self,
        out: str | Path | None,
        *,
        shard_bytes: int = SHARD_BYTES,
        progress: Progress | None = None,
    ) -> MergeReport:
        """Write the folder, or only compare."""
        opened = self.first.opened
        processor = None
        if out is not None:
            self._refuse_source(Path(out))
            processor = make_processor(opened, template=self.spec.template)
        labels = [source.label for source in self.sources if source is not self.first]
        distances = Distances([*labels, *([RESULT] if out is not None else [])])
        with whole_folder(Path(out)) if out is not None else nullcontext() as partial:
            writer = ShardWriter(partial, shard_bytes=shard_bytes) if partial else None
            total = len(self.first.shapes)
            tensors = self._tensors(distances, merging=writer is not None)
            for done, (name, tensor) in enumerate(tensors, start=1):
                if writer is not None:
                    writer.add(name, tensor)
                del tensor
                if progress:
                    progress(done, total)
            report = MergeReport.of(
                distances,
                method=self.spec.method.kind,
                first=self.first.label,
                folder=None if out is None else Path(out),
                notes=[*opened.notes, *self.notes],
            )
            if partial is not None and writer is not None and processor is not None:
                writer.close()
                write_settings(
                    opened.config,
                    processor,
                    partial,
                    dtype=self.dtype or self.first.dtype,
                    generation=json_if_there(opened.folder / "generation_config.json"),
                )
                recipe = self.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
                facts = {"versions": versions(), "merge": {**report.to_json(), "recipe": recipe}}
                write_json(partial / "provenance.json", facts)
        return report

    def _refuse_source(self, out: Path) -> None:
        checkpoints = [self.first, *self.sources]
        if any(out.resolve() == found.opened.folder.resolve() for found in checkpoints):
            raise ConfigError(
                "is one of the models that are merged", where=str(out), fix="name a new folder"
            )

    def _tensors(self, distances: Distances, *, merging: bool) -> Iterator[tuple[str, Tensor]]:
        """(name, merged tensor), in the order of the first checkpoint's files."""
        mark = Fingerprint()
        for name in self.first.found:
            yield name, self._one(name, distances, mark, merging=merging)
        mark.keep(self.first.opened.config)

    def _one(self, name: str, distances: Distances, mark: Fingerprint, *, merging: bool) -> Tensor:
        own = self.first.read(name)
        kept = self.first.loaded(name, own, dtype=self.dtype)
        mark.add(name, kept)
        if not own.is_floating_point():
            return kept
        first_T = wide(own)
        del own
        parts: list[Part] = []
        values: list[Tensor | None] = []
        for number, source in enumerate(self.sources):
            weight = self.spec.sources[number].weight_of(name)
            value = first_T if source is self.first else None
            if value is None and name in source and weight != 0:
                value = wide(source.read(name)).to(first_T.dtype)
            if value is not None and weight != 0:
                parts.append(Part(x_T=value, weight=weight, stream=f"{number}/{name}"))
            if source is not self.first:
                values.append(value)
            del value
        if not merging:
            distances.add(name, first_T, values)
            return kept
        out_T = self._merged(name, parts, first_T).to(kept.dtype)
        if not finite(out_T) and all(finite(part.x_T) for part in parts):
            raise CheckpointError(
                f"{name} leaves the range of {str(kept.dtype).removeprefix('torch.')}",
                where="merge",
                fix="choose smaller weights, or --dtype fp32",
            )
        distances.add(name, first_T, [*values, wide(out_T).to(first_T.dtype)])
        return out_T

    def _merged(self, name: str, parts: list[Part], first_T: Tensor) -> Tensor:
        if not parts and self.base is None:
            raise ConfigError(
                f"no checkpoint with a weight for {name}",
                where="merge",
                rule="a weight of 0 leaves a checkpoint out",
                fix="give one of them another weight",
            )
        if not parts:
            return first_T
        base_T = first_T if self.base is not None else None
        try:
            return self.spec.method.merge(parts, base_T=base_T)
        except ConfigError as error:
            raise ConfigError(error.what, where=name, rule=error.rule, fix=error.fix) from error


def wide(x_T: Tensor) -> Tensor:
    """The tensor in a type to calculate in: float64 stays, all else becomes float32."""
    return x_T if x_T.dtype == torch.float64 else x_T.float()


def finite(x_T: Tensor) -> bool:
    """Whether all numbers are finite. Their sum tells it at once, unless it overflows itself."""
    return bool(x_T.sum(dtype=torch.float64).isfinite()) or bool(x_T.isfinite().all())


def _open(source: SourceSpec, label: str) -> Checkpoint:
    return open_checkpoint(
        source.source, label=label, base=source.base, encoders=source.encoders or None
    )
