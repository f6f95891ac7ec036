"""Several processes on this machine for tests: gloo over a free port, ended whatever happens.

`together(2, work, *args)` runs `work(rank, *args)` in two processes and returns what each returned.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch

from retinue.cli.launch import free_port

PATIENCE_S = 100.0
CONTEXT = multiprocessing.get_context("forkserver")
# the server does not search the tests' folder, so the test modules themselves come later
CONTEXT.set_forkserver_preload(
    ["retinue.train.run", "retinue.hub.save", "retinue.parallel.grid", "peft", "transformers"]
)


def together(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(rank, *args)` returned in each of `count` processes. Raises what one raised."""
    port, answers = free_port(), CONTEXT.SimpleQueue()
    everyone = [
        CONTEXT.Process(target=_enter, args=(rank, count, port, answers, work, args), daemon=True)
        for rank in range(count)
    ]
    try:
        for one in everyone:
            one.start()
        found: dict[int, Any] = {}
        while len(found) < count:
            if not answers._reader.poll(PATIENCE_S):
                raise TimeoutError(f"only {sorted(found)} of {count} processes answered")
            rank, good, value = answers.get()
            if not good:
                raise AssertionError(f"process {rank} failed:\n{value}")
            found[rank] = pickle.loads(value)
        for one in everyone:
            one.join(20)
        return [found[rank] for rank in range(count)]
    finally:
        for one in everyone:
            if one.is_alive():
                one.kill()


def _enter(
    rank: int, count: int, port: int, answers: Any, work: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    launch = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launch.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"})
    try:
        # as bytes: tensors would otherwise be shared with a process that ends
        answers.put((rank, True, _bytes(work(rank, *args))))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))
        raise SystemExit(1) from None
    finally:
        from retinue.parallel.mesh import leave

        leave()


def _bytes(value: Any) -> bytes:
    file = io.BytesIO()
    pickle.Pickler(file).dump(value)
    return file.getvalue()
