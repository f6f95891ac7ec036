"""Keys and values of an inference twin, in buffers that grow by whole chunks.

Legend: B rows, S cached tokens, T new tokens, G key/value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 256
"""Tokens by which buffers grow: concatenating at every step would copy them each time."""


class FusedCache:
    """K/V of all layers, (B, 2G, capacity, D) each with keys before values, and the segments.

    length: tokens held. uniform: the segment that every one of them has, None if they differ.
    """

    def __init__(self, layers: int) -> None:
        self.kv: list[Tensor | None] = [None] * layers
        self.segments: Tensor | None = None
        self.length = 0
        self.uniform: int | None = None

    def get_seq_length(self) -> int:
        """Tokens held; the name is transformers'."""
        return self.length

    def extend(self, segments_BT: Tensor) -> tuple[int, int]:
        """Make room for new tokens; (first, stop) of their columns."""
        start, stop = self.length, self.length + segments_BT.shape[1]
        self.segments = _grown(self.segments, segments_BT.shape[:1], start, stop, segments_BT)
        self.segments[:, start:stop] = segments_BT
        low, high = int(segments_BT.min()), int(segments_BT.max())
        fits = low == high and (start == 0 or self.uniform == low)
        self.uniform = low if fits else None
        self.length = stop
        return start, stop

    def write(self, layer: int, kv_BGTD: Tensor, start: int, stop: int) -> Tensor:
        """Store a layer's new keys and values, (B, 2G, T, D); all of them, (B, 2G, S, D)."""
        old = self.kv[layer]
        if old is None or old.shape[2] < stop:
            B, G, _, D = kv_BGTD.shape
            blank = kv_BGTD.new_empty(B, G, _capacity(stop), D)
            if old is not None:
                blank[:, :, :start] = old[:, :, :start]
            self.kv[layer] = old = blank
        old[:, :, start:stop] = kv_BGTD
        return old[:, :, :stop]

    def seen(self) -> Tensor:
        """(B, S) segments of the tokens held."""
        assert self.segments is not None
        return self.segments[:, : self.length]

    def batch_select_indices(self, places: Tensor) -> None:
        """Keep only these rows; the name is transformers'."""
        self.kv = [None if kv is None else kv[places] for kv in self.kv]
        if self.segments is None:
            return
        self.segments = self.segments[places]
        if self.length and self.segments.numel():
            held = self.seen()
            low, high = int(held.min()), int(held.max())
            self.uniform = low if low == high else None


def _capacity(tokens: int) -> int:
    return -(-tokens // CHUNK) * CHUNK


def _grown(old: Tensor | None, rows: torch.Size, start: int, stop: int, like: Tensor) -> Tensor:
    if old is not None and old.shape[1] >= stop:
        return old
    made = like.new_zeros(*rows, _capacity(stop))
    if old is not None:
        made[:, :start] = old[:, :start]
    return made
