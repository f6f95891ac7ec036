"""Keys and values of all requests in one pool of blocks, and a step's view of it.

Legend: B rows, T new tokens, P cached tokens of the longest row, S = P + T, G key/value heads,
D head width, C heads of keys and values together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Pool:
    """Per layer a tensor of (slots, heads, width), made when the layer first writes.

    slots: tokens in all; those of block 0 take what padding writes.
    """

    def __init__(self, blocks: int, *, size: int) -> None:
        self.slots, self.size = blocks * size, size
        self.held: dict[tuple[int, str], Tensor] = {}

    def of(self, layer: int, part: str, like_BCTD: Tensor) -> Tensor:
        """The tensor of one layer and part (keys, values or both)."""
        found = self.held.get((layer, part))
        if found is None:
            _, C, _, D = like_BCTD.shape
            # zeros: what is masked counts with weight 0, which a NaN would survive
            found = like_BCTD.new_zeros(self.slots, C, D)
            self.held[layer, part] = found
        return found

    @property
    def bytes(self) -> int:
        """Memory of all tensors made so far."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.held.values())


class StepCache:
    """What a forward over some rows sees of the pool and writes to it.

    It answers to transformers' layers (`update`) and to those of the inference twin (`extend`,
    `seen`, `write`). tables: each row's blocks; starts: its cached tokens; counts: its new ones,
    in the first columns of T. recipe: how processes that share the layers make the same.
    """

    recipe: object = None

    def __init__(
        self,
        pool: Pool,
        *,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        device: torch.device,
    ) -> None:
        self.pool = pool
        rows, self.length, T = len(tables), max(starts), max(counts)
        slots_BS = torch.zeros(rows, self.length + T, dtype=torch.long)
        past_BP = torch.zeros(rows, self.length, dtype=torch.long)
        within = torch.arange(pool.size)
        for row, (table, start, count) in enumerate(zip(tables, starts, counts, strict=True)):
            own = (torch.tensor(table)[:, None] * pool.size + within).flatten()
            slots_BS[row, :start] = own[:start]
            slots_BS[row, self.length : self.length + count] = own[start : start + count]
            past_BP[row, :start] = 1
        self.rows, self.T = rows, T
        self.uniform = 1 if min(starts) == self.length and min(counts) == T else None
        self.slots_N = slots_BS.flatten().to(device)
        self.new_N = slots_BS[:, self.length :].flatten().to(device)
        self.past_BP = past_BP.to(device)
        self.segments: Tensor | None = None

    # ------------------------------------------------------------------ transformers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Cached tokens of the longest row; the name is transformers'."""
        return self.length

    def update(
        self, key_BGTD: Tensor, value_BGTD: Tensor, layer: int, *args: object, **more: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; those of all tokens, (B, G, S, D) each."""
        return (
            self._exchange(layer, "key", key_BGTD),
            self._exchange(layer, "value", value_BGTD),
        )

    # ------------------------------------------------------------------ the inference twin

    def extend(self, segments_BT: Tensor) -> tuple[int, int]:
        """(first, stop) of the new tokens' columns."""
        self.segments = torch.cat([self.past_BP, segments_BT], 1)
        return self.length, self.length + self.T

    def seen(self) -> Tensor:
        """(B, P) segments of the cached tokens, (B, S) once the new ones have joined."""
        return self.past_BP if self.segments is None else self.segments

    def write(self, layer: int, kv_BCTD: Tensor, start: int, stop: int) -> Tensor:
        """Store a layer's new keys and values, keys before values; all of them, (B, C, S, D)."""
        return self._exchange(layer, "both", kv_BCTD)

    def _exchange(self, layer: int, part: str, new_BCTD: Tensor) -> Tensor:
        held = self.pool.of(layer, part, new_BCTD)
        # layers may lie on several devices
        new_N, slots_N = self.new_N.to(held.device), self.slots_N.to(held.device)
        held.index_copy_(0, new_N, new_BCTD.transpose(1, 2).flatten(0, 1))
        all_NCD = held.index_select(0, slots_N)
        return all_NCD.view(self.rows, self.length + self.T, *held.shape[1:]).transpose(1, 2)
