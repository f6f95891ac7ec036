"""Parameters that are laid out otherwise: some of theirs together are some of ours, and back.

A renamed or turned matrix is a group of one and one, a fused projection of one and three, the
experts of a layer of many and one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from retinue.convert.weights import Weights
from retinue.core.errors import CheckpointError

Tensors = Sequence[Tensor]


def same(tensors: Tensors) -> Tensors:
    """No change."""
    return tensors


@dataclass(frozen=True, slots=True)
class Group:
    """`theirs` and `ours` are names; `read` turns values of the former into the latter's."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    read: Callable[[Tensors], Tensors] = same
    write: Callable[[Tensors], Tensors] = same


def renamed(theirs: str, ours: str) -> Group:
    """One parameter under another name."""
    return Group((theirs,), (ours,))


def modules(pairs: Mapping[str, str], leaves: Sequence[str] = ("weight", "bias")) -> list[Group]:
    """Modules under other names, leaf by leaf."""
    return [
        renamed(f"{theirs}.{leaf}", f"{ours}.{leaf}")
        for theirs, ours in pairs.items()
        for leaf in leaves
    ]


def fused(theirs: str, ours: Sequence[str]) -> Group:
    """One parameter whose rows are those of several of ours, in order and of equal number."""
    return Group((theirs,), tuple(ours), read=_parted(len(ours)), write=_joined)


def _parted(count: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors[0].chunk(count)


def _joined(tensors: Tensors) -> Tensors:
    return [torch.cat(list(tensors))]


class Regrouped(Weights):
    """Weights seen by our names. Names that no group speaks of keep their own, for the report."""

    made = True

    def __init__(self, weights: Weights, groups: Iterable[Group]) -> None:
        super().__init__(weights.files)
        self.under = weights
        self._groups = {name: group for group in groups for name in group.ours}
        self._last: tuple[Group, Tensors] | None = None

    @cached_property
    def names(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        seen: set[str] = set()
        for name, group in self._groups.items():
            here = [their for their in group.theirs if their in self.under.names]
            if 0 < len(here) < len(group.theirs):
                lost = [their for their in group.theirs if their not in here]
                raise CheckpointError(
                    f"{', '.join(lost[:3])} missing beside {here[0]}",
                    where=str(self.under.names[here[0]]),
                    fix="download or copy the folder again",
                )
            if here:
                found[name] = self.under.names[here[0]]
                seen.update(here)
        rest = {name: file for name, file in self.under.names.items() if name not in seen}
        return found | rest

    def read(self, name: str) -> Tensor:
        group = self._groups.get(name)
        if group is None:
            return self.under.read(name)
        if self._last is None or self._last[0] is not group:
            self._last = None
            values = [self.under.read(their) for their in group.theirs]
            self._last = group, group.read(values)
        return self._last[1][group.ours.index(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        group = self._groups.get(name)
        if group is None:
            return self.under.shape(name)
        empty = [torch.empty(self.under.shape(n), device="meta") for n in group.theirs]
        return tuple(group.read(empty)[group.ours.index(name)].shape)

    def dtype(self, name: str) -> torch.dtype:
        group = self._groups.get(name)
        return self.under.dtype(name if group is None else group.theirs[0])


def written(
    tensors: Iterable[tuple[str, Tensor]], groups: Iterable[Group]
) -> Iterator[tuple[str, Tensor]]:
    """The way back: (our name, tensor) -> (their name, tensor).

    A part is held until its group is whole, so a stream in layer order holds one layer's.
    Raises CheckpointError for a name that has no place there.
    """
    by_name = {name: group for group in groups for name in group.ours}
    held: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        group = by_name.get(name)
        if group is None:
            raise CheckpointError(
                f"{name} has no place in the target format", fix="convert to retinue"
            )
        parts = held.setdefault(id(group), {})
        parts[name] = tensor
        if len(parts) == len(group.ours):
            del held[id(group)]
            yield from zip(group.theirs, group.write([parts[n] for n in group.ours]), strict=True)
    if held:
        lost = sorted(next(iter(parts)) for parts in held.values())
        raise CheckpointError(f"incomplete beside {lost[0]}", where="export")


class Layered(Weights):
    """Several checkpoints of one model, later ones over earlier ones."""

    def __init__(self, layers: Sequence[Weights]) -> None:
        super().__init__([file for layer in layers for file in layer.files])
        self._layers = list(layers)

    @cached_property
    def _owner(self) -> dict[str, Weights]:
        return {name: layer for layer in self._layers for name in layer.names}

    @cached_property
    def names(self) -> dict[str, Path]:
        return {name: layer.names[name] for name, layer in self._owner.items()}

    def read(self, name: str) -> Tensor:
        return self._owner[name].read(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owner[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._owner[name].dtype(name)
