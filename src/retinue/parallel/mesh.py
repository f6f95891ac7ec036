"""Processes as a grid of (data, tensor): torch's DeviceMesh over gloo or nccl."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from retinue.core.errors import ConfigError
from retinue.parallel.launch import Launch, adopt
from retinue.parallel.spec import ParallelSpec

DATA, TENSOR = "data", "tensor"
"""Names of the mesh's dimensions; processes of one tensor group are neighbours."""

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


def local_device(device: torch.device) -> torch.device:
    """The accelerator that is this process's own, chosen for torch as well; a CPU stays a CPU."""
    if device.type != "cuda":
        return device
    launch = adopt()
    if launch.size == 1:
        return device
    count = torch.cuda.device_count()
    if launch.local >= count:
        raise ConfigError(
            f"process {launch.local} of this machine has no GPU, there are {count}",
            where="LOCAL_RANK",
            fix=f"start at most {count} processes a machine, or compute with --device cpu",
        )
    own = torch.device("cuda", launch.local)
    torch.cuda.set_device(own)
    return own


def join(device: torch.device) -> Launch:
    """Meet the other processes of the launch, once; does nothing for one process.

    Raises ConfigError for a device over which processes cannot talk.
    """
    launch = adopt()
    if launch.size > 1 and not dist.is_initialized():
        if device.type not in BACKENDS:
            raise ConfigError(
                f"several processes on device {device.type}",
                where="--device",
                rule=f"processes talk over {' or '.join(BACKENDS)}",
            )
        dist.init_process_group(BACKENDS[device.type])
        # it warns that what two dimensions divide is gathered in two steps, in every process
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    return launch


def leave() -> None:
    """End the group that `join` made, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(device: torch.device) -> Iterator[Launch]:
    """Inside: member of the launch's group."""
    try:
        yield join(device)
    finally:
        leave()


def build_mesh(spec: ParallelSpec, *, device: torch.device) -> DeviceMesh:
    """The mesh (data, tensor) of the joined group; `mesh[DATA]`, `mesh[TENSOR]` are its lines.

    Processes of one tensor group are consecutive, as model-parallel groups of others are. Raises
    ConfigError where the degrees do not multiply to the number of processes.
    """
    shape = spec.degrees(dist.get_world_size())
    return init_device_mesh(device.type, shape, mesh_dim_names=(DATA, TENSOR))
