"""HDF5 files of rows, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinue.core.lazy import need
from retinue.data.prepare.rows import Row


def write_file(
    path: Path, rows: Sequence[Row], *, multimodal: bool = True, open_end: bool = False
) -> None:
    """One file with the datasets data, img_path, has_img, img_data_loc and attribute n_examples.

    open_end: datasets that may grow, as the original leaves shuffled files.
    """
    h5py = need("h5py", extra="hdf5", purpose="writing HDF5 data")
    part = path.with_suffix(f".{os.getpid()}.part")
    with h5py.File(part, "w", libver="latest") as out:
        out.attrs["n_examples"] = len(rows)
        _put(out, open_end, "data", np.stack([row.data for row in rows]))
        if multimodal:
            text = h5py.string_dtype("utf-8")
            paths = np.array([row.paths for row in rows], dtype=object)
            _put(out, open_end, "img_path", paths, dtype=text)
            _put(out, open_end, "has_img", np.array([[row.has_image] for row in rows]))
            _put(out, open_end, "img_data_loc", np.stack([row.places for row in rows]))
    part.replace(path)


def _put(out: Any, open_end: bool, name: str, array: Any, **more: Any) -> None:
    shape = array.shape
    longest = (None, *shape[1:]) if open_end else shape
    out.create_dataset(
        name, data=array, chunks=(1, *shape[1:]), maxshape=longest, compression="gzip", **more
    )


def read_rows(path: Path) -> list[Row]:
    """All rows of a small file."""
    h5py = need("h5py", extra="hdf5", purpose="reading HDF5 data")
    with h5py.File(path) as file:
        data = file["data"][()]
        count = len(data)
        if "img_path" not in file:
            return [_row(one, np.zeros((0, 0), np.int32), []) for one in data]
        paths = file["img_path"].asstr()[()]
        places = file["img_data_loc"][()]
        return [_row(data[i], places[i], list(paths[i])) for i in range(count)]


def _row(data: Any, places: Any, paths: list[str]) -> Row:
    return Row(data=data, places=places, paths=paths)
