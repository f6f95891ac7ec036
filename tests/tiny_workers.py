"""LLaVA's workers over tiny models: in a thread, or (as a script) in a process to be killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from loopback_app import free_port, listening
from retinue.serve.app import create_app
from retinue.serve.llava.worker import Worker, add_worker, pools
from retinue.serve.service import Service
from tiny import tiny_model


def made(
    name: str, seed: int, controller: str, port: int, *, beat: float
) -> tuple[FastAPI, Service]:
    """The application of a worker that will be at `port`."""
    model, processor = tiny_model(seed=seed)
    pools(model, processor)
    service = Service(model, processor, name=name)
    app = create_app(service)
    own = f"http://127.0.0.1:{port}"
    add_worker(app, Worker(service=service, address=own, controller=controller, beat=beat))
    return app, service


@contextmanager
def worker(name: str, seed: int, controller: str, *, beat: float = 0.1) -> Iterator[Service]:
    """A worker in a thread of this process."""
    port = free_port()
    app, service = made(name, seed, controller, port, beat=beat)
    with listening(app, port=port):
        yield service
    service.engine.check_integrity()


@contextmanager
def process(
    name: str, seed: int, controller: str, *, beat: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, which may be killed before the end."""
    told = [name, str(seed), controller, str(free_port()), str(beat)]
    child = subprocess.Popen([sys.executable, __file__, *told], cwd=Path(__file__).parent)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    name, seed, controller, port, beat = sys.argv[1:]
    app, _ = made(name, int(seed), controller, int(port), beat=float(beat))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error")
