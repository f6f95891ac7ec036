"""How one matrix is cut among the ranks of a tensor group, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

SPLITS = "tensor_splits"
"""Attribute of a module whose parameters are cut: parameter -> `Split`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A dimension that is several blocks on end, of each of which every rank has an equal part.

    blocks: their lengths. One block is an ordinary column or row split; queries, keys and values in
    one matrix are three. The ranks' parts on end are the tensor in *rank order*, which is what a
    DTensor of them holds; with one block that is the plain order.
    """

    dim: int
    blocks: tuple[int, ...]

    def ranges(self, rank: int, *, of: int) -> list[tuple[int, int]]:
        """[start, stop) along the dimension of what rank `rank` of `of` holds."""
        found, start = [], 0
        for block in self.blocks:
            part = block // of
            found.append((start + rank * part, start + (rank + 1) * part))
            start += block
        return found

    def cut(self, whole: Tensor, rank: int, *, of: int) -> Tensor:
        """A rank's part of a whole tensor, in memory of its own."""
        parts = [whole.narrow(self.dim, a, b - a) for a, b in self.ranges(rank, of=of)]
        return torch.cat(parts, self.dim) if len(parts) > 1 else parts[0].clone()

    def to_ranks(self, whole: Tensor, *, of: int) -> Tensor:
        """Plain order to rank order."""
        if len(self.blocks) == 1:
            return whole
        return torch.cat([self.cut(whole, rank, of=of) for rank in range(of)], self.dim)

    def to_plain(self, ranked: Tensor, *, of: int) -> Tensor:
        """Rank order to plain order."""
        if len(self.blocks) == 1:
            return ranked
        sizes = [block // of for block in self.blocks]
        ranks = [part.split(sizes, self.dim) for part in ranked.chunk(of, self.dim)]
        return torch.cat([parts[b] for b in range(len(sizes)) for parts in ranks], self.dim)

    def shard(self, local: Tensor, mesh: DeviceMesh) -> DTensor:
        """This rank's part as its share of the whole."""
        local = local.contiguous()
        return DTensor.from_local(local, mesh, [Shard(self.dim)], run_check=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A split, and among how many ranks."""

    split: Split
    of: int


def cuts(model: nn.Module) -> dict[str, Cut]:
    """Parameter name -> how it is cut, of every parameter that is."""
    found = {}
    for path, module in model.named_modules():
        splits: Mapping[str, Split] = getattr(module, SPLITS, {})
        for leaf, split in splits.items():
            of = module.tensor_mesh.size()
            found[f"{path}.{leaf}" if path else leaf] = Cut(split=split, of=of)
    return found


def whole(tensor: Tensor, cut: Cut | None = None) -> Tensor:
    """The full tensor in plain order; every rank of its mesh must call this together.

    tensor: a parameter, its gradient or moment, sharded in any way or not at all; cut: that of the
    parameter.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full if cut is None else cut.split.to_plain(full, of=cut.of)


def like(full: Tensor, parameter: Tensor, cut: Cut | None = None) -> Tensor:
    """A full tensor in plain order laid out as a parameter is; every rank has the full one."""
    if not isinstance(parameter, DTensor):
        return full
    ranked = full if cut is None else cut.split.to_ranks(full, of=cut.of)
    mesh, places = parameter.device_mesh, parameter.placements
    local = ranked.to(parameter.device)
    # no rank's copy differs, so nothing needs to be sent
    return DTensor.from_local(
        local, mesh, [Replicate() for _ in places], run_check=False
    ).redistribute(mesh, places)


def full_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], *, names: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Name -> full tensor in plain order on the CPU, one at a time, for any sharding.

    tensors: under names of the model's parameters. Every rank iterates alike.
    """
    known = cuts(model)
    for name, tensor in tensors.items():
        key = (names or {}).get(name, name)
        yield name, whole(tensor.detach(), known.get(key)).cpu()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as one process without any sharding would have it, on the CPU.

    Every rank calls it together; each gets all of it, one tensor at a time.
    """
    return dict(full_tensors(model, model.state_dict()))
