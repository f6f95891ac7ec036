"""Weights, gradients and moments divided among the data groups: torch's FSDP2 over our path.

Units are the language model's layers and the encoders' blocks; what is left belongs to the root,
whose weights are whole from a micro-batch's forward to its backward. Reference: Zhao et al. 2023
(PyTorch FSDP, arXiv 2304.11277), `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from retinue.core.log import once
from retinue.parallel.spec import ParallelSpec
from retinue.parallel.step import Step
from retinue.parallel.tensor_split import whole
from retinue.parallel.unwrap import unwrap


class Sharded:
    """A model whose parameters are divided over a mesh line, until `undo`.

    model: a Retinue, frozen, freed and prepared; mesh: one dimension, on whose device type the
    model computes; its tensors may lie elsewhere and are moved unit by unit. Afterwards parameters
    are DTensors, those of no dimension excepted, which every process keeps.
    """

    def __init__(self, model: Any, *, mesh: DeviceMesh, spec: ParallelSpec) -> None:
        assert spec.shard != "none"
        self.model = model
        self.units = [*units(model)]
        self.step = Step(model, gated=self.units)
        single = {parameter for parameter in model.parameters() if not parameter.dim()}
        away = spec.offload and mesh.device_type != "cpu"
        if spec.offload and not away:
            once("parallel.offload=true has no effect here: main memory is where all is computed")
        offload = CPUOffloadPolicy() if away else OffloadPolicy()
        travel = torch.bfloat16 if spec.gather == "bf16" else None
        common: dict[str, Any] = {"mesh": mesh, "offload_policy": offload}
        self.compiled = [unit for unit in self.units if unit._compiled_call_impl is not None]
        for unit in self.compiled:  # gathering stays outside
            unit._compiled_call_impl = None
            unit.forward = torch.compile(unit.forward, dynamic=True)
        for unit in self.units:
            fully_shard(
                unit,
                reshard_after_forward=spec.shard == "reshard",
                mp_policy=MixedPrecisionPolicy(param_dtype=travel, reduce_dtype=torch.float32),
                ignored_params=single,
                **common,
            )
        fully_shard(self.step, reshard_after_forward=False, ignored_params=single, **common)
        for module in self.wrapped():
            # losses are divided by the global count already
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        # which of these a batch reaches may differ between processes
        for module in (self.step, *model.lm.layers):
            module.set_reduce_scatter_unused_params(True, recurse=False)
        if mesh.device_type != "cpu":
            device = torch.device(mesh.device_type, torch.accelerator.current_device_index())
            for parameter in single:
                parameter.data = parameter.data.to(device)

    def wrapped(self) -> Iterator[FSDPModule]:
        """The root and all units."""
        for module in (self.step, *self.units):
            assert isinstance(module, FSDPModule)
            yield module

    def release(self) -> None:
        """Drop gathered weights, which an optimizer's step is about to make stale."""
        for module in self.wrapped():
            module.reshard()

    @torch.no_grad()
    def undo(self) -> None:
        """Give the model its plain parameters back, on the CPU, in every process.

        Those that a tensor group divides come in the order of its ranks, as `undivide` takes them.
        """
        self.release()
        full: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            full[name] = whole(parameter.detach()).cpu()
        flags = {name: p.requires_grad for name, p in self.model.named_parameters()}
        for module in (*self.units, self.step):
            unwrap(module)
        self.step.close()
        for unit in self.compiled:
            del unit.forward
        for name, tensor in full.items():
            path, _, leaf = name.rpartition(".")
            owner = self.model.get_submodule(path)
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=flags[name]))
        self.model.to("cpu")


def units(model: Any) -> Iterator[nn.Module]:
    """Modules that are gathered as one: blocks of the encoders, layers of the language model."""
    for encoder in model.encoders.values():
        yield from _blocks(encoder)
    yield from model.lm.layers


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists below a module that have weights."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from _blocks(child)
