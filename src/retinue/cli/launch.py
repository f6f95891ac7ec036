"""Several ranks on this machine: the same command again, with torchrun's variables."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PATIENCE_S = 30.0
"""How long the other ranks may take to end once this one is done."""


@contextmanager
def replicas(count: int, arguments: Sequence[str]) -> Iterator[None]:
    """Inside: this process is rank 0 of `count`; the others run `retinue ARGUMENTS`.

    The cores are shared out. When this rank fails, the others are ended.
    """
    if count < 2:
        yield
        return
    from retinue.ops.backend import default_threads

    share = max(1, default_threads() // count)
    launch = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(share),
    }
    before = {name: os.environ.get(name) for name in (*launch, "RANK")}
    command = [sys.executable, "-m", "retinue", *arguments]
    others = [
        subprocess.Popen(command, env={**os.environ, **launch, "RANK": str(rank)})
        for rank in range(1, count)
    ]
    os.environ.update({**launch, "RANK": "0"})
    done = False
    try:
        yield
        done = True
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        end(others, patience_s=PATIENCE_S if done else 0.0)


def end(others: Sequence[subprocess.Popen[bytes]], *, patience_s: float) -> None:
    """Wait for processes to finish, then insist."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    for other in others:
        try:
            other.wait(timeout=patience_s or 0.1)
        except subprocess.TimeoutExpired:
            other.kill()
            other.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
