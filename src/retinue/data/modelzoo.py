"""ModelZoo's data processor: batches of its HDF5 files with pictures, tensor for tensor.

Legend: B rows, T tokens, I pictures of a row, P patches, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from retinue.core.errors import MediaError
from retinue.core.spec import Spec
from retinue.data.hdf5 import Rows
from retinue.data.modelzoo_order import Batches, mixture, subset
from retinue.data.prepare.rows import ABSENT, FEATURES
from retinue.media.steps import Steps


class MixturePart(Spec):
    """One weighted source."""

    data_dir: str | list[str]
    weight: float = Field(gt=0)
    data_subset: str | None = None


class ModelZooDataSpec(Spec):
    """The fields of MultimodalSimpleHDF5MapDataProcessor; either data_dir or mixture."""

    data_processor: str = "MultimodalSimpleHDF5MapDataProcessor"
    data_dir: str | list[str] | None = None
    mixture: list[MixturePart] | None = None
    img_data_dir: str = "."
    image_data_size: tuple[int, int, int] = (3, 224, 224)
    transforms: list[dict[str, Any]] = Field(default_factory=list)
    batch_size: int = Field(gt=0)
    micro_batch_size: int | str | dict[str, int] | None = None
    shuffle: bool = False
    shuffle_seed: int = 0
    use_worker_cache: bool = False
    max_sequence_length: int | None = None
    data_subset: str | None = None
    drop_last: bool = True
    num_samples: int | None = Field(default=None, gt=0)
    sort_files: bool = True
    use_vsl: bool = False
    pad_last: bool = False
    max_num_img: int = 1
    num_patches: int | None = None
    num_workers: int = Field(default=0, ge=0)
    prefetch_factor: int | None = 10
    persistent_workers: bool = True
    vocab_size: int | None = None
    noaugment: bool | None = None
    mixed_precision: bool | None = None
    fp16_type: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelZooDataSpec:
        if (self.data_dir is None) == (self.mixture is None):
            raise ValueError("give data_dir or mixture")
        if self.use_vsl or self.pad_last or not self.sort_files:
            raise ValueError("use_vsl, pad_last and unsorted files are not supported")
        return self


class ModelZooData:
    """The rows of a spec: `len`, rows as tensors, and `batches`. root: of relative paths."""

    def __init__(self, spec: ModelZooDataSpec, *, root: Path = Path(".")) -> None:
        self.spec, self.root = spec, root
        self.steps = Steps(spec.transforms)
        parts = spec.mixture or [
            MixturePart(data_dir=spec.data_dir or [], weight=1.0, data_subset=spec.data_subset)
        ]
        self.sources = [Rows([root / d for d in dirs_of(part.data_dir)]) for part in parts]
        chosen = [
            subset(len(rows), part.data_subset)
            for rows, part in zip(self.sources, parts, strict=True)
        ]
        if spec.mixture is None:
            self.rows = [(0, row) for row in chosen[0]]
        else:
            weights = [part.weight for part in parts]
            found = mixture(
                [len(one) for one in chosen],
                weights,
                shuffle=spec.shuffle,
                seed=spec.shuffle_seed,
            )
            self.rows = [(source, chosen[source][row]) for source, row in found]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> dict[str, Tensor]:
        """The features, image_data (I, C, H, W) and image_data_loc (I, P) of one row."""
        source, number = self.rows[index]
        row = self.sources[source][number]
        found = {name: torch.from_numpy(row.data[i]) for i, name in enumerate(FEATURES)}
        if row.paths:
            pixels = [self.picture(path) for path in row.paths]
            found["image_data"] = torch.stack(pixels)
            found["image_data_loc"] = torch.from_numpy(np.asarray(row.places))
        return found

    def picture(self, path: str) -> Tensor:
        """A picture after the steps; an absent one is black before them.

        The original takes the first two of (channels, height, width) for its height and width, so
        that a step which pads to a square shows a stripe. The model never sees these pixels.
        """
        if path == ABSENT:
            height, width, _ = self.spec.image_data_size
            return self.steps(Image.new("RGB", (width, height)))
        file = self.root / self.spec.img_data_dir / path
        try:
            with Image.open(file) as picture:
                return self.steps(picture)
        except OSError as error:
            raise MediaError(f"no readable picture ({error})"[:160], where=str(file)) from error

    def sampler(self) -> Batches:
        """The batches' row numbers, pass after pass."""
        spec = self.spec
        return Batches(
            len(self),
            batch=spec.batch_size,
            shuffle=spec.shuffle,
            seed=spec.shuffle_seed,
            drop_last=spec.drop_last,
            num_samples=spec.num_samples,
        )

    def batches(self, sampler: Batches | None = None) -> Iterator[dict[str, Tensor]]:
        """One pass of batches; give the same sampler again for the next one."""
        for rows in sampler or self.sampler():
            yield stacked([self.row(index) for index in rows])


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def dirs_of(value: str | list[str]) -> list[str]:
    """One folder or several."""
    return [value] if isinstance(value, str) else list(value)
