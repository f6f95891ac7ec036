"""Peak memory of the loss: supervised rows fixed, ever more positions without a target.

Legend: T positions, S supervised ones, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retinue.ops.cross_entropy import linear_cross_entropy_sum
from retinue.types import IGNORE

WIDTH, SUPERVISED = 256, 300
POSITIONS, VOCABULARIES = (1024, 2048, 4096), (8000, 32000)


class Peak(TorchDispatchMode):
    """Bytes of tensors made inside the block that live at once, at most.

    torch itself keeps no such count on a CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tensors((args, kwargs)):
            key = x.untyped_storage()._cdata
            if key not in self.live:
                self.known.add(key)  # made before the block
        out = func(*args, **(kwargs or {}))
        self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
        for x in tensors(out):
            storage = x.untyped_storage()
            if storage._cdata not in self.known:
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if torch.is_tensor(x)]


def ours(h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """What `Head.loss` does: rows first, then the chunked loss."""
    rows = (labels_T != IGNORE).nonzero().flatten()
    loss, count = linear_cross_entropy_sum(
        h_TD.index_select(0, rows), weight_VD, labels_T.index_select(0, rows)
    )
    return loss / count


def theirs(h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """What transformers' causal models do: logits of every position, in fp32."""
    logits_TV = torch.nn.functional.linear(h_TD, weight_VD).float()
    return torch.nn.functional.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE)


def peak_of(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, T: int, V: int, device: torch.device
) -> tuple[float, float]:
    """(MiB at the peak of forward and backward, loss)."""
    generator = torch.Generator().manual_seed(0)
    h_TD = torch.randn(T, WIDTH, generator=generator).to(device, torch.bfloat16)
    weight_VD = (0.05 * torch.randn(V, WIDTH, generator=generator)).to(device, torch.bfloat16)
    labels_T = torch.full((T,), IGNORE)
    labels_T[:SUPERVISED] = torch.randint(V, (SUPERVISED,), generator=generator)
    h_TD.requires_grad_()
    weight_VD.requires_grad_()
    with Peak() as peak:
        value = loss(h_TD, weight_VD, labels_T.to(device))
        value.backward()
    return peak.peak / 2**20, float(value.detach())


def report_loss_memory(device: torch.device) -> list[dict[str, Any]]:
    """Print and return the peaks; exit code 1 where ours grows with positions x vocabulary.

    Allowed growth: the gradient of the hidden states, which every position has.
    """
    print(f"\npeak MiB of the loss, {SUPERVISED} supervised positions, width {WIDTH}, bf16:")
    table = []
    for V in VOCABULARIES:
        for T in POSITIONS:
            (mine, loss), (other, wanted) = (
                peak_of(form, T=T, V=V, device=device) for form in (ours, theirs)
            )
            common.require(abs(loss - wanted) <= 2e-3 * wanted, f"losses at {T} x {V}")
            row = {"positions": T, "vocabulary": V, "retinue_mib": mine, "all_rows_mib": other}
            table.append({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
            print(f"  {T - SUPERVISED:5} unsupervised x {V:6}: {mine:8.1f}   all rows {other:8.1f}")
        first, last = (row for row in table[-len(POSITIONS) :: len(POSITIONS) - 1])
        grown = last["retinue_mib"] - first["retinue_mib"]
        hidden = (POSITIONS[-1] - POSITIONS[0]) * WIDTH * 2 / 2**20
        common.require(grown <= 2 * hidden + 0.1, f"the loss's memory grew by {grown:.1f} MiB")
    print("it does not grow with unsupervised positions x vocabulary")
    return table
