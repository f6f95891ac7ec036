"""Folders written whole or not at all, and weights cut into shards on the way out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from retinue.convert.weights import BIN_INDEX, SAFE_INDEX
from retinue.core.errors import NO_ROOM, CheckpointError, EnvError
from retinue.core.files import write_json

SHARD_BYTES = 5 * 2**30
MARKS = ("config.json", "adapter_config.json", "provenance.json", "trainer_state.json")
"""A folder that holds none of these is no model's or checkpoint's."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends without an error.

    Until then the previous folder stays as it was. Raises EnvError when there is no room or no
    right to write; nothing half-written is left. Refuses to replace what is no folder.
    """
    folder = Path(folder).absolute()
    _check(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _env(error, folder) from error
    try:
        yield partial
        _sync(partial)
        partial.chmod(0o777 & ~_umask())
        _swap(partial, folder)
    except EnvError as error:
        if error.where is None or not Path(error.where).is_relative_to(partial):
            raise
        # of a folder that was being written whole inside this one
        raise EnvError(error.what, where=str(folder), rule=_kept(folder), fix=error.fix) from error
    except (OSError, SafetensorError) as error:
        raise _env(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(folder: Path) -> None:
    """Refuse to replace what no program of ours may have written."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError("is a file, not a folder", where=str(folder), fix="name a folder")
    within = Path.cwd().is_relative_to(folder.resolve())
    known = any((folder / name).exists() for name in MARKS)
    if folder.is_dir() and any(folder.iterdir()) and (within or not known):
        raise CheckpointError(
            "is where you work" if within else "holds other files, which would be lost",
            where=str(folder),
            rule="only a model's folder is replaced",
            fix="name a new folder",
        )


def _swap(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old)  # an empty target folder is replaced
    try:
        partial.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _env(error: Exception, folder: Path) -> EnvError:
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    full = number in NO_ROOM or any(f"os error {code}" in text for code in NO_ROOM)
    if full:
        return EnvError(
            f"no room to write it ({text})",
            where=str(folder),
            rule=_kept(folder),
            fix="free some space, or choose another disk",
        )
    return EnvError(f"cannot be written ({text})", where=str(folder), rule=_kept(folder))


def _kept(folder: Path) -> str:
    return "the previous folder is kept" if folder.exists() else "nothing was left behind"


class ShardWriter:
    """Tensors in, `model.safetensors` or numbered shards with an index out.

    Holds at most `shard_bytes` of tensors (and the one that overflows it).
    """

    stem, suffix, index, numbered = "model", ".safetensors", SAFE_INDEX, False

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._held: dict[str, Tensor] = {}
        self._size = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; a full shard is written before the next begins."""
        size = tensor.numel() * tensor.element_size()
        if self._held and self._size + size > self.shard_bytes:
            self._flush()
        self._held[name] = tensor.detach().to("cpu").contiguous()
        self._size += size
        self._total += size

    def close(self) -> None:
        """Write what is held; give the shards their final names and index."""
        if self._held or not self._shards:
            self._flush()
        count = len(self._shards)
        if count == 1 and not self.numbered:
            self._part(1).rename(self.folder / f"{self.stem}{self.suffix}")
            return
        table: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            final = f"{self.stem}-{number:05d}-of-{count:05d}{self.suffix}"
            self._part(number).rename(self.folder / final)
            table |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": table}
        write_json(self.folder / self.index, index)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}{self.suffix}"

    def _flush(self) -> None:
        self._shards.append(list(self._held))
        self._write(self._held, self._part(len(self._shards)))
        self._held, self._size = {}, 0

    def _write(self, tensors: dict[str, Tensor], file: Path) -> None:
        save_file(tensors, file, metadata={"format": "pt"})


class BinWriter(ShardWriter):
    """The same as torch files: `pytorch_model.bin`, or `mm_projector.bin`."""

    suffix, index = ".bin", BIN_INDEX

    def __init__(
        self,
        folder: Path,
        *,
        shard_bytes: int = SHARD_BYTES,
        stem: str = "pytorch_model",
        numbered: bool = False,
    ) -> None:
        super().__init__(folder, shard_bytes=shard_bytes)
        self.numbered = numbered
        self.stem = stem

    def _write(self, tensors: dict[str, Tensor], file: Path) -> None:
        # a view would take its whole storage along
        torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file)
