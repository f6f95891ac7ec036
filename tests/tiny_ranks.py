"""Several processes on this machine for tests: gloo over a free port, ended whatever happens.

`together(2, work, *args)` runs `work(rank, *args)` in two processes and returns what each returned.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
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
    """What `work(rank, *args)` returned in each of `count` processes. Raises what one raised.

    A process that was killed gives minus the signal.
    """
    port, answers = free_port(), CONTEXT.SimpleQueue()
    # pytest's names of test modules mean nothing elsewhere
    place = (work.__code__.co_filename, work.__name__)
    everyone = [
        CONTEXT.Process(target=_enter, args=(rank, count, port, answers, *place, args), daemon=True)
        for rank in range(count)
    ]
    found: dict[int, Any] = {}
    late = time.monotonic() + PATIENCE_S
    try:
        for one in everyone:
            one.start()
        while len(found) < count:
            if answers._reader.poll(0.2):
                rank, good, value = answers.get()
                assert good, f"process {rank} failed:\n{value}"
                found[rank] = pickle.loads(value)
                continue
            for rank, one in enumerate(everyone):
                if one.exitcode is not None and one.exitcode < 0:
                    found.setdefault(rank, one.exitcode)
                assert not one.exitcode or one.exitcode < 0 or answers._reader.poll(1), (
                    f"process {rank} did not begin"
                )
            assert time.monotonic() < late, f"only {sorted(found)} of {count} processes answered"
        return [found[rank] for rank in range(count)]
    finally:
        for one in everyone:
            one.join(10 if len(found) == count else 0)
            if one.is_alive():
                one.kill()


def _enter(rank: int, count: int, port: int, answers: Any, file: str, name: str, args: Any) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(file).parent))
    launch = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launch.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"})
    try:
        work = getattr(importlib.import_module(Path(file).stem), name)
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
