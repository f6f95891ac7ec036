"""A checkpoint's tensors by our names, each read when it is asked for and not kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retinue.convert.keymap import Coverage
from retinue.convert.llava import llava_keys
from retinue.hub.lora import check_fit, read_lora
from retinue.hub.sources import Opened, open_folder
from retinue.hub.stream import (
    Place,
    cast,
    language_dtype,
    places,
    require_complete,
    shapes_of,
    skeleton,
    tied_names,
)

Changes = dict[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened folder: shapes of all tensors, and where each stands. Adapters are folded in.

    dtype: that of its language model; None where there is none.
    """

    label: str
    opened: Opened
    shapes: Mapping[str, torch.Size]
    found: Mapping[str, Place]
    folds: tuple[Changes, ...]
    dtype: torch.dtype | None
    unused: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def read(self, name: str) -> Tensor:
        """One tensor as on disk. Raises CheckpointError if it has not the config's shape."""
        tensor = self.found[name].read(self.shapes[name])
        for changes in self.folds:
            if name in changes:
                tensor = changes[name](tensor)
        return tensor

    def loaded(self, name: str, tensor: Tensor, *, dtype: torch.dtype | None) -> Tensor:
        """A tensor of this checkpoint in the dtype that `load` would give it."""
        return cast(name, tensor, asked=dtype, common=dtype or self.dtype)


def open_checkpoint(
    path: str | Path,
    *,
    label: str,
    base: str | None = None,
    encoders: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Any folder that `load` reads. Raises CheckpointError, also for one that is incomplete."""
    opened = open_folder(path, base=base, encoders=encoders)
    model = skeleton(opened.config)
    wanted, cover = shapes_of(model), Coverage()
    found = {
        place.name: place for place in places(opened.sources, wanted, tied_names(model), cover)
    }
    require_complete(cover, where=str(path))
    return Checkpoint(
        label=label,
        opened=opened,
        shapes={name: wanted[name].shape for name in found},
        found=found,
        folds=tuple(_fold(folder, opened, wanted) for folder in opened.adapters),
        dtype=language_dtype(opened.sources),
        unused=tuple(cover.unused),
    )


def _fold(folder: Path, opened: Opened, shapes: Mapping[str, Tensor]) -> Changes:
    maps = [*(source.keys for source in opened.sources), llava_keys()]

    def rename(key: str) -> str | None:
        names = (key, *(keys.to_retinue(key) for keys in maps))
        return next((name for name in names if name in shapes), None)

    lora = read_lora(folder)
    check_fit(lora, shapes, rename)
    return lora.changes(rename)
