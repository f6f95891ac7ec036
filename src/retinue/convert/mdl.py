"""ModelZoo's `.mdl` checkpoints: HDF5 containers with one compressed dataset per tensor.

Reference: files that ModelZoo 2.x writes (attributes, names, LZ4 filter 32004).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinue.convert.weights import AGAIN, Weights
from retinue.core.errors import CheckpointError
from retinue.core.lazy import need

STATE = "model."
"""First word of every dataset that belongs to the model; optimizers have others."""
CODES = {torch.float16: 10}
"""The container's own numbers of dtypes, as far as files show them."""


class MdlWeights(Weights):
    """Tensors of `.mdl` files by their names in the state dict."""

    def _names(self, file: Path) -> list[str]:
        names = self._hdf5(file).keys()
        return [name.removeprefix(STATE) for name in names if name.startswith(STATE)]

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype that it was saved in."""
        data = self._hdf5(self.names[name])[STATE + name]
        tensor = torch.from_numpy(data[()].copy())
        wanted = self.dtype(name)
        if wanted == tensor.dtype:
            return tensor
        if wanted == torch.bfloat16 and tensor.element_size() == 2:
            return tensor.view(torch.int16).view(torch.bfloat16)
        return tensor.to(wanted)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._hdf5(self.names[name])[STATE + name].shape)

    def dtype(self, name: str) -> torch.dtype:
        data = self._hdf5(self.names[name])[STATE + name]
        said = data.attrs.get("dtypes")
        if said is not None and len(said):
            found = getattr(torch, str(said[0]).removeprefix("torch."), None)
            if isinstance(found, torch.dtype):
                return found
        return torch.from_numpy(data[()][..., :0].copy()).dtype

    def _hdf5(self, file: Path) -> Any:
        if file not in self._open:
            h5py = need("h5py", extra="hdf5", purpose="reading .mdl checkpoints")
            need("hdf5plugin", extra="hdf5", purpose="reading .mdl checkpoints")
            try:
                self._open[file] = h5py.File(file, "r")
            except OSError as error:
                raise CheckpointError(str(error)[:160], where=str(file), fix=AGAIN) from error
        return self._open[file]


def write_mdl(file: Path, tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Write a state dict tensor by tensor; returns the names.

    bfloat16 is kept as its bits in int16, with its name beside it.
    """
    h5py = need("h5py", extra="hdf5", purpose="writing .mdl checkpoints")
    plugin = need("hdf5plugin", extra="hdf5", purpose="writing .mdl checkpoints")
    names = []
    with h5py.File(file, "w", libver="latest") as out:
        for name, tensor in tensors:
            kind = tensor.dtype
            plain = tensor.detach().cpu().contiguous()
            array = (plain.view(torch.int16) if kind == torch.bfloat16 else plain).numpy()
            packed = plugin.LZ4() if array.size else {}
            data = out.create_dataset(STATE + name, data=array, chunks=array.size > 0, **packed)
            facts: dict[str, Any] = {
                "__TYPE__": "TorchTensorSerializer",
                "__TORCH__": True,
                "__NUMPY__": True,
                "compressed": False,
                "shapes": [list(tensor.shape)],
                "dtypes": [str(kind)],
            }
            if kind in CODES:
                facts["rtfx_dtypes"] = [CODES[kind]]
            for key, value in facts.items():
                data.attrs[key] = value
            out.attrs[f"{STATE}{name}.__metadata__"] = _about(STATE + name, facts)
            names.append(name)
        leaves = dict.fromkeys(names, "*")
        tree = json.dumps([1, _tree({"model": names})])
        out.attrs["__spec__"] = json.dumps([{"model": leaves}, tree], indent=4)
        out.attrs["__version__"] = 0.5
        out.attrs["__SUCCESS__"] = True
    return names


def _about(key: str, facts: dict[str, Any]) -> str:
    spec = [{key: "*"}, json.dumps([1, _tree([key])])]
    body = {"__spec__": spec, "__objects__": [key], f"{key}.__metadata__": facts}
    return json.dumps(body, indent=4)


def _tree(keys: list[str] | dict[str, list[str]]) -> dict[str, Any]:
    """The nesting of dicts as torch's pytree writes it."""
    names = list(keys)
    below = [_tree(keys[name]) if isinstance(keys, dict) else _LEAF for name in names]
    return {"type": "builtins.dict", "context": json.dumps(names), "children_spec": below}


_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
