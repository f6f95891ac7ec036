"""LLaVA's controller: knows the workers, sends clients to them, passes streams on.

It trusts whoever can reach it: a worker is any address that somebody registers. Keep it on a
network of your own.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.requests import Request as Http

from retinue.serve.llava import BUSY, NO_WORKER, UNREACHABLE
from retinue.serve.llava.link import Broken, post, stream

EXPIRY = 30.0
"""Seconds after its last heartbeat at which a worker is forgotten, and between two looks."""

Dispatch = Literal["shortest_queue", "lottery"]


@dataclass(slots=True, kw_only=True)
class Worker:
    """What a worker said of itself."""

    models: list[str]
    speed: float
    queue: int
    beats: bool
    seen: float = field(default_factory=time.monotonic)


class Controller:
    """The workers by their addresses. Methods may be called from several threads."""

    def __init__(self, *, dispatch: Dispatch = "shortest_queue", expiry: float = EXPIRY) -> None:
        self.dispatch, self.expiry = dispatch, expiry
        self.workers: dict[str, Worker] = {}
        self.lock = threading.Lock()

    def register(self, name: str, beats: bool, status: dict[str, Any] | None) -> bool:
        """Add a worker or renew it; one that gives no status is asked for it."""
        status = status or ask_status(name)
        if status is None:
            return False
        found = Worker(
            models=[str(model) for model in status["model_names"]],
            speed=status["speed"],
            queue=status["queue_length"],
            beats=beats,
        )
        with self.lock:
            self.workers[name] = found
        return True

    def refresh(self) -> None:
        """Ask every worker again; those that do not answer are forgotten."""
        with self.lock:
            before = dict(self.workers)
        for name, worker in before.items():
            if not self.register(name, worker.beats, None):
                with self.lock:
                    self.workers.pop(name, None)

    def expire(self) -> None:
        """Forget workers whose heartbeat has stopped."""
        with self.lock:
            oldest = time.monotonic() - self.expiry
            for name, worker in list(self.workers.items()):
                if worker.beats and worker.seen < oldest:
                    del self.workers[name]

    @property
    def models(self) -> list[str]:
        with self.lock:
            return list(dict.fromkeys(m for worker in self.workers.values() for m in worker.models))

    def address(self, model: str) -> str:
        """A worker that has the model, "" where none has."""
        with self.lock:
            having = {name: w for name, w in self.workers.items() if model in w.models}
            if not having:
                return ""
            if self.dispatch == "lottery":
                weights = [worker.speed for worker in having.values()]
                if sum(weights) <= 0:
                    return ""
                return random.choices(list(having), weights)[0]
            name = min(having, key=lambda name: having[name].queue / (having[name].speed or 1e-9))
            having[name].queue += 1  # until its next heartbeat
            return name

    def beat(self, name: str, queue: int) -> bool:
        """A heartbeat; False tells the worker to register again."""
        with self.lock:
            worker = self.workers.get(name)
            if worker is None:
                return False
            worker.queue, worker.seen = queue, time.monotonic()
            return True

    def status(self) -> dict[str, Any]:
        """The sum of all workers that answer."""
        with self.lock:
            names = list(self.workers)
        found = [status for name in names if (status := ask_status(name)) is not None]
        return {
            "model_names": list(dict.fromkeys(m for one in found for m in one["model_names"])),
            "speed": sum(one["speed"] for one in found),
            "queue_length": sum(one["queue_length"] for one in found),
        }

    def answer(self, body: dict[str, Any]) -> Iterator[bytes]:
        """A worker's stream; a model without worker gives two messages, as the original does."""
        address = self.address(body["model"])
        if not address:
            yield message(BUSY, NO_WORKER)
        try:
            yield from stream(address, "/worker_generate_stream", body)
        except Broken:
            yield message(BUSY, UNREACHABLE)


def ask_status(name: str) -> dict[str, Any] | None:
    """What a worker says of itself, None where it does not answer."""
    try:
        found = post(name, "/worker_get_status")
        return {key: found[key] for key in ("model_names", "speed", "queue_length")}
    except (*Broken, KeyError, TypeError):
        return None


def message(text: str, code: int) -> bytes:
    """One message of a stream."""
    return json.dumps({"text": text, "error_code": code}).encode() + b"\0"


def create_controller(controller: Controller) -> FastAPI:
    """The controller's HTTP application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await asyncio.sleep(controller.expiry)
                controller.expire()

        watching = asyncio.create_task(watch())
        yield
        watching.cancel()

    app = FastAPI(title="retinue as LLaVA's controller", lifespan=lifespan, redoc_url=None)

    @app.exception_handler(KeyError)
    @app.exception_handler(TypeError)
    @app.exception_handler(ValueError)
    async def incomplete(http: Http, error: Exception) -> Response:
        return PlainTextResponse("Internal Server Error", 500)

    @app.post("/register_worker")
    async def register_worker(http: Http) -> None:
        body = await http.json()
        await asyncio.to_thread(
            controller.register,
            body["worker_name"],
            body["check_heart_beat"],
            body.get("worker_status"),
        )

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        await asyncio.to_thread(controller.refresh)

    @app.post("/list_models")
    async def list_models() -> dict[str, Any]:
        return {"models": controller.models}

    @app.post("/get_worker_address")
    async def get_worker_address(http: Http) -> dict[str, str]:
        body = await http.json()
        return {"address": controller.address(body["model"])}

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(http: Http) -> dict[str, bool]:
        body = await http.json()
        return {"exist": controller.beat(body["worker_name"], body["queue_length"])}

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(http: Http) -> Response:
        body = await http.json()
        if "model" not in body:
            raise KeyError("model")
        return StreamingResponse(controller.answer(body))

    @app.post("/worker_get_status")
    async def worker_get_status() -> Response:
        return JSONResponse(await asyncio.to_thread(controller.status))

    return app
