"""ModelZoo's HDF5 rows as samples: tokens are ready, pictures are read when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from retinue.core.errors import DataError
from retinue.data.hdf5 import Rows, pictures_of, real_length
from retinue.types import IGNORE, Media, Message, Ready, Sample


class Hdf5:
    """Rows of token ids with masks and places of pictures, as `data preprocess` writes them.

    path: one .h5 file, or a folder of them. Rows are read one by one.
    """

    def __init__(self, path: Path, *, root: Path) -> None:
        self.path, self.root, self.rows = path, root, Rows([path])

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_dir() or path.suffix in (".h5", ".hdf5")

    @classmethod
    def open(
        cls, path: str | Path, *, media_root: str | Path | None = None, empty_answers: bool = False
    ) -> Self:
        """Open `path`. media_root: the folder that picture paths start at."""
        place = Path(path)
        beside = place if place.is_dir() else place.parent
        return cls(place, root=beside if media_root is None else Path(media_root))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """The index-th row. Raises DataError for one with masked keys between others."""
        row = self.rows[index]
        count = real_length(row)
        if row.data[3, :count].any():
            raise DataError(
                "keys are masked inside the row",
                where=self.where(index),
                rule="training attends to every token of a sample (semantic_attention_mask)",
                fix="prepare the data without attention masks",
            )
        ids, mask, labels = row.data[0, :count], row.data[1, :count], row.data[2, :count]
        tokens = [*ids.tolist(), *labels[-1:].tolist()]
        weights = [0.0, *mask.astype(np.float64).tolist()]
        found = pictures_of(row)
        media = tuple(Media(source=str(self.root / path), name=path) for path, _ in found)
        graded = any(weight not in (0.0, 1.0) for weight in weights)
        return Sample(
            id=f"{self.path.name}-{index}",
            messages=(Message(role="user", parts=media),),
            ready=Ready(
                tokens=tuple(tokens),
                labels=tuple(t if w else IGNORE for t, w in zip(tokens, weights, strict=True)),
                slots=tuple((int(at[0]), len(at)) for _, at in found),
                weights=tuple(weights) if graded else None,
            ),
        )

    def where(self, index: int) -> str:
        path, number = self.rows.locate(index)
        return f"{path}, row {number}"
