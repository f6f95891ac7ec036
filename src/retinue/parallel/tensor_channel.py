"""Commands from the first rank of a group to the others: plain data with tensors inside."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from retinue.parallel.mesh import BACKENDS, TENSOR, join, local_device

PATIENT = timedelta(days=365)
"""How long ranks wait for the next command: a chat may be left alone over a weekend."""


def meet(device: torch.device) -> tuple[DeviceMesh, torch.device]:
    """Join the processes of the launch, all of which share one model; the mesh, and our device.

    Raises ConfigError for a device over which processes cannot talk.
    """
    own = local_device(device)
    if own.type in BACKENDS:
        dist.init_process_group(BACKENDS[own.type], timeout=PATIENT)
    launch = join(own)
    return init_device_mesh(own.type, (launch.size,), mesh_dim_names=(TENSOR,)), own


class Channel:
    """Broadcasts over the default group; what is sent first arrives first.

    lock: held from the sending of a command until its own part of the work is done, so that ranks
    do the same in the same order whatever threads there are. on_loss: called with what went wrong
    after a command was sent: the ranks are no longer at the same point, and nothing can follow.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.lock = device, threading.RLock()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.on_loss: Callable[[Exception], None] = lambda error: None

    def send(self, command: Any) -> None:
        """From the first rank. torch's errors come where another one has ended (`peers_lost`)."""
        packed = _Packed()
        packed.pickler.dump(command)
        shapes = [(t.dtype, tuple(t.shape), t.device.type) for t in packed.tensors]
        body = pickle.dumps((shapes, packed.buffer.getvalue()))
        dist.broadcast(torch.tensor([len(body)]), src=0)
        dist.broadcast(torch.frombuffer(bytearray(body), dtype=torch.uint8), src=0)
        for tensor in packed.tensors:
            dist.broadcast(tensor.contiguous(), src=0)

    def receive(self) -> Any:
        """The next command, in another rank; errors as for `send`."""
        length = torch.zeros(1, dtype=torch.long)
        dist.broadcast(length, src=0)
        body = torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(body, src=0)
        shapes, data = pickle.loads(body.numpy().tobytes())
        tensors = []
        for dtype, shape, kind in shapes:
            place = self.device if kind == self.device.type else torch.device("cpu")
            tensors.append(torch.empty(shape, dtype=dtype, device=place))
            dist.broadcast(tensors[-1], src=0)
        return _Unpickler(data, tensors).load()


class _Packed:
    """A pickler that sets tensors aside."""

    def __init__(self) -> None:
        self.buffer, self.tensors = io.BytesIO(), list[Tensor]()
        self.pickler = _Pickler(self.buffer, self.tensors)


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors = tensors

    def persistent_id(self, found: Any) -> int | None:
        if not isinstance(found, Tensor):
            return None
        self.tensors.append(found.detach())
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, tensors: list[Tensor]) -> None:
        super().__init__(io.BytesIO(data))
        self.tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        return self.tensors[number]
