"""LLaMA2-Accessory's and Meta's checkpoints: one model cut over several `consolidated.*.pth`.

Every projection is cut along one side, as tensor parallelism holds it; the rules of the cut are the
same in both directions. Reference: Alpha-VLLM/LLaMA2-Accessory (file names, parameter names).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError

PREFIX = "llma."
"""What the original puts before every name; Meta's files have none."""

META = re.compile(r"consolidated\.(\d\d)\.pth")
WHOLE = re.compile(r"consolidated\.(\d\d)-of-(\d\d)\.model\.pth")
DELTA = re.compile(r"consolidated\.(\d\d)-of-(\d\d)\.model-diff\.pth")

COLUMN = r"(?:attention\.w[qkv]|feed_forward(?:\.experts\.\d+)?\.w[13])"
ROW = r"(?:attention\.wo|feed_forward(?:\.experts\.\d+)?\.w2)"
SPARSE = re.compile(r"layers\.\d+\.feed_forward\.w[123]")
OWNED = re.compile(r"layers\.\d+\.feed_forward\.experts\.(\d+)\..*")
SIDES: Sequence[tuple[re.Pattern[str], int]] = (
    (re.compile(r"tok_embeddings\.weight"), 1),
    (re.compile(r"output\.(weight|bias)"), 0),
    (re.compile(rf"layers\.\d+\.{COLUMN}\.(weight|bias|lora_b\.weight)"), 0),
    (re.compile(rf"layers\.\d+\.{ROW}\.(weight|lora_a\.weight)"), 1),
    (re.compile(r"prefix_gate"), 1),
)
"""Which side of a parameter is cut; what is not listed is the same in every shard."""


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a folder in rank order, [] if it has none of this kind.

    Raises CheckpointError for two kinds in one folder, and for a rank that is missing.
    """
    names = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    kinds = {
        label: found
        for label, pattern in (("Meta's", META), ("full", WHOLE), ("difference", DELTA))
        if (found := [name for name in names if pattern.fullmatch(name)])
    }
    if len(kinds) > 1:
        raise CheckpointError(
            f"files of {len(kinds)} kinds: {', '.join(sorted(kinds))}",
            where=str(folder),
            rule="a folder holds one checkpoint",
            fix="move the others away",
        )
    if not kinds:
        return []
    kind, found = kinds.popitem()
    if kind == "difference":
        raise CheckpointError(
            "differences to another checkpoint, no weights",
            where=str(folder),
            rule="the original cannot load them either",
            fix="add them to their base with the original's tools",
        )
    total = len(found) if kind == "Meta's" else int(found[0].split("-of-")[1][:2])
    form = (
        "consolidated.{:02d}.pth" if kind == "Meta's" else "consolidated.{:02d}-of-{:02d}.model.pth"
    )
    wanted = [form.format(rank, total) for rank in range(total)]
    lost = [name for name in wanted if name not in found]
    if lost or len(found) != total:
        raise CheckpointError(
            f"{len(lost)} of {total} weight files are missing: {', '.join(lost) or found[-1]}",
            where=str(folder),
            fix="download or copy the folder again",
        )
    return [folder / name for name in wanted]


def side_of(name: str) -> int | None:
    """The dimension along which a parameter is cut, None if every shard has all of it."""
    return next((side for pattern, side in SIDES if pattern.fullmatch(name)), None)


def join(name: str, parts: Sequence[Tensor], *, experts: int | None) -> Tensor:
    """One parameter from its parts in rank order; experts: of a mixture's layers."""
    if len(parts) == 1:
        return parts[0]
    if SPARSE.fullmatch(name):
        assert experts is not None
        cut = [part.unflatten(0, (experts, -1)) for part in parts]
        return torch.cat(cut, dim=1).flatten(0, 1)
    side = side_of(name)
    return parts[0] if side is None else torch.cat(list(parts), dim=side)


def cut(name: str, tensor: Tensor, *, shards: int, experts: int | None) -> list[Tensor | None]:
    """The parts of one parameter in rank order; None where a rank has none of it.

    Raises CheckpointError where the parameter does not divide.
    """
    owned = OWNED.fullmatch(name)
    if owned:
        assert experts is not None
        _divides(name, experts, shards, what="experts")
        rank = int(owned[1]) // (experts // shards)
        return [tensor if place == rank else None for place in range(shards)]
    if SPARSE.fullmatch(name):
        assert experts is not None
        view = tensor.unflatten(0, (experts, -1))
        _divides(name, view.shape[1], shards, what="rows of an expert")
        return [part.flatten(0, 1) for part in view.chunk(shards, dim=1)]
    side = side_of(name)
    if side is None:
        return [tensor] * shards
    _divides(name, tensor.shape[side], shards, what=f"entries along side {side}")
    return list(tensor.chunk(shards, dim=side))


def _divides(name: str, number: int, shards: int, *, what: str) -> None:
    if number % shards:
        raise CheckpointError(
            f"{name} has {number} {what}",
            where=f"export to {shards} shards",
            rule="every shard holds an equal part",
            fix="choose a number of shards that divides it",
        )


class Consolidated(Weights):
    """The shards of one checkpoint seen as whole parameters, by names without `llma.`.

    Files are mapped into memory: a parameter's parts are read when it is asked for. Where replicas
    differ, the first shard's counts. experts: of a mixture, from its config.
    """

    def __init__(self, files: Sequence[Path], *, experts: int | None = None) -> None:
        super().__init__(files)
        self.experts = experts

    @cached_property
    def holders(self) -> dict[str, list[Path]]:
        """Name -> the shards that hold a part of it, in rank order."""
        found: dict[str, list[Path]] = {}
        for file in self.files:
            for name in self._names(file):
                found.setdefault(name, []).append(file)
        return found

    @cached_property
    def names(self) -> dict[str, Path]:
        return {name: files[0] for name, files in self.holders.items()}

    def read(self, name: str) -> Tensor:
        parts = [self._pickle(file)[name] for file in self._needed(name)]
        self._check(name, parts)
        return join(name, parts, experts=self.experts)

    def shape(self, name: str) -> tuple[int, ...]:
        parts = [torch.empty_like(self._pickle(f)[name], device="meta") for f in self._needed(name)]
        return tuple(join(name, parts, experts=self.experts).shape)

    def _needed(self, name: str) -> list[Path]:
        files = self.holders[name]
        apart = side_of(name) is not None or SPARSE.fullmatch(name)
        return files if apart and not OWNED.fullmatch(name) else files[:1]

    def _check(self, name: str, parts: Sequence[Tensor]) -> None:
        if len({(part.dim(), part.dtype) for part in parts}) > 1 or (
            len(self.holders[name]) not in (1, len(self.files))
        ):
            raise CheckpointError(
                f"{name} is not cut alike in all {len(self.files)} files",
                where=str(self.names[name]),
                fix="download or copy the folder again",
            )

    def _pickle(self, file: Path) -> dict[str, Any]:
        if file in self._open:
            known: dict[str, Any] = self._open[file]
            return known
        data: Any = super()._pickle(file)
        inner = data.get("model")
        if isinstance(inner, Mapping):
            data = inner
        bare = {str(key).removeprefix(PREFIX): value for key, value in data.items()}
        self._open[file] = bare
        return bare
