"""Weight files read one tensor at a time: safetensors and torch pickles, sharded or not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from retinue.core.errors import CheckpointError

WHOLE = ("model.safetensors", "pytorch_model.bin")
SAFE_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"


class Weights:
    """The tensors of some files by name. Nothing is read before it is asked for.

    files: safetensors or .bin, in one folder. Raises CheckpointError for a file that is missing,
    truncated or no weight file. made: what is read has been put together in new memory.
    """

    made = False

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = [Path(file) for file in files]
        self._open: dict[Path, Any] = {}

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """The model weights of a folder, through its index where there is one; may be empty."""
        for index in (SAFE_INDEX, BIN_INDEX):
            if (folder / index).exists():
                data = read_json(folder / index)
                names = sorted(set(data.get("weight_map", {}).values()))
                if any(Path(name).name != name for name in names):
                    raise CheckpointError(
                        "the index names a file outside its folder", where=str(folder / index)
                    )
                lost = [name for name in names if not (folder / name).exists()]
                if lost:
                    raise CheckpointError(
                        f"{len(lost)} of {len(names)} weight files are missing: {', '.join(lost)}",
                        where=str(folder),
                        rule=f"{index} names them",
                        fix="download or copy the folder again",
                    )
                return cls(folder / name for name in names)
        for name in WHOLE:
            if (folder / name).exists():
                return cls([folder / name])
        return cls([])

    @cached_property
    def names(self) -> dict[str, Path]:
        """Tensor name -> the file that holds it, in the files' order."""
        return {name: file for file in self.files for name in self._names(file)}

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype on disk."""
        file = self.names[name]
        if file.suffix == ".safetensors":
            tensor: Tensor = self._safe(file).get_tensor(name)
        else:
            tensor = self._pickle(file)[name]
        return tensor

    def read_part(self, name: str, *, dim: int, ranges: Sequence[tuple[int, int]]) -> Tensor:
        """Of one tensor [start, stop) of a dimension, for each range, on end.

        From a safetensors file nothing else is read; torch's files are mapped, so that only the
        pages of these parts are touched.
        """
        file = self.names[name]
        if type(self).read is Weights.read and file.suffix == ".safetensors":
            held = self._safe(file).get_slice(name)
            before = (slice(None),) * dim
            parts = [held[(*before, slice(start, stop))] for start, stop in ranges]
        else:
            tensor = self.read(name)
            parts = [tensor.narrow(dim, start, stop - start) for start, stop in ranges]
        return torch.cat(parts, dim) if len(parts) > 1 else parts[0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor without reading it."""
        file = self.names[name]
        if file.suffix == ".safetensors":
            return tuple(self._safe(file).get_slice(name).get_shape())
        return tuple(self._pickle(file)[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor on disk."""
        file = self.names[name]
        if file.suffix == ".safetensors":
            part: Tensor = self._safe(file).get_slice(name)[:0]
            return part.dtype
        tensor: Tensor = self._pickle(file)[name]
        return tensor.dtype

    def _names(self, file: Path) -> list[str]:
        if file.suffix == ".safetensors":
            return list(self._safe(file).keys())
        return [name for name, value in self._pickle(file).items() if isinstance(value, Tensor)]

    def _safe(self, file: Path) -> Any:
        if file not in self._open:
            check_length(file)
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(str(error), where=str(file), fix=AGAIN) from error
        return self._open[file]

    def _pickle(self, file: Path) -> dict[str, Any]:
        if file not in self._open:
            try:
                data = load_pickle(file)
            except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
                raise CheckpointError(
                    f"cannot be read as tensors ({str(error).splitlines()[0]:.120})",
                    where=str(file),
                    rule="pickles are opened with weights_only, which runs no code",
                    fix=AGAIN,
                ) from error
            if not isinstance(data, dict):
                raise CheckpointError("holds no dict of tensors", where=str(file))
            self._open[file] = data
        return self._open[file]


AGAIN = "download or copy it again"


def load_pickle(file: Path) -> Any:
    """A torch file's content, mapped into memory where its format allows."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):  # the old non-zip format cannot be mapped
            raise
    return torch.load(file, map_location="cpu", weights_only=True)


def check_length(file: Path) -> None:
    """Raise CheckpointError unless a safetensors file is as long as its header says."""
    found = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        expected = 8 + length
        if len(start) == 8 and expected <= found:
            try:
                header = json.loads(stream.read(length))
            except ValueError as error:
                raise CheckpointError(
                    "its header is no JSON", where=str(file), rule="not safetensors"
                ) from error
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            expected += max(ends, default=0)
    if found != expected or len(start) < 8:
        raise CheckpointError(
            f"truncated or damaged: expected {expected} bytes, found {found}",
            where=str(file),
            rule="a safetensors header states the length of the file",
            fix=AGAIN,
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file if it is none."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"no readable JSON ({reason})", where=str(file)) from error
    if not isinstance(data, dict):
        raise CheckpointError("no JSON object", where=str(file))
    return data
