"""Tables of which only some rows train: the others' gradients are taken away before every update.

An update by Adam moves nothing where gradients have always been zero, and such a table does not
decay, so the other rows keep their bits. Legend: V rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Rows:
    """The rows that train, of each parameter that trains in part.

    rows_of: name -> rows. Parameters may be divided among processes by their rows.
    """

    def __init__(self, model: nn.Module, rows_of: Mapping[str, Sequence[int]]) -> None:
        self.kept: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in model.named_parameters():
            if name in rows_of:
                mask_V1 = torch.ones(len(parameter), 1, dtype=torch.bool)
                mask_V1[list(rows_of[name])] = False
                self.kept.append((parameter, _laid_out(mask_V1, parameter)))

    @torch.no_grad()
    def still(self) -> None:
        """Zero in the gradients of all other rows."""
        for parameter, mask_V1 in self.kept:
            if parameter.grad is not None:
                _local(parameter.grad).masked_fill_(mask_V1, 0.0)


def _laid_out(mask_V1: Tensor, parameter: Any) -> Tensor:
    """This process's part of a mask, divided as the parameter is."""
    if not hasattr(parameter, "device_mesh"):
        return mask_V1.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    # the whole mask is in every process already, so that nothing has to be sent
    divided = distribute_tensor(
        mask_V1.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None
    )
    local: Tensor = divided.to_local()
    return local.to(parameter.device)


def _local(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
