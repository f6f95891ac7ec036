"""Several gloo processes for a test: each runs a function of this test run, results come back."""

from __future__ import annotations

import multiprocessing
import queue
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

TIME_LIMIT_S = 240.0


def on_ranks(work: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Any]:
    """`work(rank, mesh, *arguments)` in so many processes; what each returns, by rank.

    mesh: one dimension called "tensor" over all of them. Fails with the first rank's traceback.
    """
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        context.Process(target=_rank, args=(number, count, port, answers, work, arguments))
        for number in range(count)
    ]
    found: dict[int, Any] = {}
    try:
        for process in ranks:
            process.start()
        deadline = time.monotonic() + TIME_LIMIT_S
        while len(found) < count:
            try:
                number, value, error = answers.get(timeout=1.0)
            except queue.Empty:
                assert time.monotonic() < deadline, "the ranks do not come to an end"
                gone = [p.exitcode for p in ranks if p.exitcode]
                assert not gone, f"a rank ended with {gone}"
                continue
            assert error is None, f"rank {number}\n{error}"
            found[number] = value
        return [found[number] for number in range(count)]
    finally:
        for process in ranks:
            process.join(timeout=5 if len(found) == count else 0.1)
            if process.is_alive():
                process.kill()
                process.join()


def _rank(
    number: int, count: int, port: int, answers: Any, work: Callable[..., Any], arguments: Any
) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch's own, about private settings of gloo
    dist.init_process_group(
        "gloo", rank=number, world_size=count, init_method=f"tcp://127.0.0.1:{port}"
    )
    try:
        mesh = init_device_mesh("cpu", (count,), mesh_dim_names=("tensor",))
        answers.put((number, work(number, mesh, *arguments), None))
    except BaseException:
        answers.put((number, None, traceback.format_exc()))
    dist.destroy_process_group()
