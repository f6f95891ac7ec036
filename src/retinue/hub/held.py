"""Tensors offered like weight files: those already in memory, and copies under other names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from retinue.convert.keymap import KeyMap, Rule
from retinue.convert.weights import Weights

AS_IS = KeyMap([Rule("{rest}", "{rest}")])


class Held(Weights):
    """Tensors that are in memory already, read like files."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__([])
        self.names = dict.fromkeys(tensors, Path("memory"))
        self._tensors = tensors

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype


class Copied(Weights):
    """Weights of the language model under the names of their copies (new name -> old name)."""

    def __init__(self, weights: Weights, keys: KeyMap, copies: Mapping[str, str]) -> None:
        super().__init__([])
        found = {keys.to_retinue(key): key for key in weights} if copies else {}
        self._keys = {new: found[old] for new, old in copies.items() if old in found}
        self.names = {new: weights.names[key] for new, key in self._keys.items()}
        self._weights, self._map = weights, keys

    def read(self, name: str) -> torch.Tensor:
        key = self._keys[name]
        tensor, found = self._weights.read(key), self._map.match(key)
        assert found is not None
        return tensor if found[1].op is None else found[1].op.apply(tensor)

    def dtype(self, name: str) -> torch.dtype:
        return self._weights.dtype(self._keys[name])
