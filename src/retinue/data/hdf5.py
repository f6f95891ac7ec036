"""Rows of ModelZoo's HDF5 files by number: one row is read at a time, never a whole file."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinue.core.errors import DataError
from retinue.core.lazy import need
from retinue.data.prepare.rows import ABSENT, FEATURES, Row


class Rows:
    """All rows of some folders (or files), numbered through in the order of the sorted paths.

    Raises DataError where there is none, where a file is no such HDF5, and where the shapes of two
    files differ.
    """

    def __init__(self, places: Sequence[str | Path]) -> None:
        self.files: list[Path] = []
        for place in map(Path, places):
            self.files += [place] if place.is_file() else list(place.glob("*.h5"))
        self.files.sort(key=str)
        where = ", ".join(str(place) for place in places)
        if not self.files:
            raise DataError("no .h5 file", where=where, fix="run: retinue data preprocess")
        self._open: dict[tuple[int, Path], Any] = {}
        counts, first = [], None
        for path in self.files:
            file = self._file(path)
            data = file.get("data")
            if data is None or data.ndim != 3 or data.shape[1] < len(FEATURES):
                raise DataError(
                    "no rows of token features",
                    where=str(path),
                    rule=f"`data` is (rows, {len(FEATURES)}, tokens)",
                )
            shape = tuple(file[name].shape[1:] for name in ("data", "img_data_loc") if name in file)
            if first is None:
                first = shape
            if shape != first:
                raise DataError(
                    f"rows of {shape}, where other files have {first}",
                    where=str(path),
                    rule="max_seq_length, max_num_img and num_patches agree in all files",
                )
            counts.append(len(data))
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        path, number = self.locate(index)
        file = self._file(path)
        if "img_path" not in file:
            return Row(data=file["data"][number], places=np.zeros((0, 0), np.int32), paths=[])
        paths = [str(one) for one in file["img_path"].asstr()[number]]
        return Row(data=file["data"][number], places=file["img_data_loc"][number], paths=paths)

    def locate(self, index: int) -> tuple[Path, int]:
        """(file, row inside it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self.files[number], index - (self._ends[number - 1] if number else 0)

    def _file(self, path: Path) -> Any:
        key = (os.getpid(), path)  # a handle must not be shared with a forked worker
        if key not in self._open:
            h5py = need("h5py", extra="hdf5", purpose="reading HDF5 data")
            try:
                self._open[key] = h5py.File(path, "r")
            except OSError as error:
                raise DataError(f"no readable HDF5 ({error})"[:160], where=str(path)) from None
        return self._open[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}


def pictures_of(row: Row) -> list[tuple[str, NDArray[np.int32]]]:
    """(path, positions of its slots) of the pictures that a row shows."""
    width = row.data.shape[1]
    found = zip(row.paths, row.places, strict=True)
    return [(path, at) for path, at in found if path != ABSENT and at[0] < width]


def real_length(row: Row, *, pad: int | None = None) -> int:
    """Input positions of a row before its padding.

    Padding is where the key is masked, nothing is trained and the ids repeat the last one: a
    masked region in the middle has real positions behind it.
    """
    ids, mask, labels, hidden = row.data[0], row.data[1], row.data[2], row.data[3]
    fill = ids[-1] if pad is None else pad
    blank = (hidden != 0) & (mask == 0) & (ids == fill) & (labels == fill)
    real = np.nonzero(~blank)[0]
    return int(real[-1]) + 1 if len(real) else 0
