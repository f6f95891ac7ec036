"""The HTTP application in front of other servers: keys, limits, health, retries; bodies pass on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.requests import Request as Http
from starlette.types import Receive, Scope, Send

from retinue.serve.app import add_errors
from retinue.serve.failures import ApiError
from retinue.serve.front.backends import Backends
from retinue.serve.guard import Guard
from retinue.serve.metrics import Page
from retinue.serve.replies import DONE, sse
from retinue.serve.service import ServeSpec

PASSED = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
"""Routes that the servers behind ours answer."""


def create_front(backends: Backends, *, spec: ServeSpec | None = None) -> FastAPI:
    """Our API over other servers. spec: keys and limits of this one."""
    spec = spec or ServeSpec()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with backends.watched():
            yield

    app = FastAPI(title="retinue in front", lifespan=lifespan, redoc_url=None)
    replies: Counter[tuple[str, int]] = Counter()
    app.add_middleware(Guard, keys=spec.keys, body_bytes=spec.body_bytes, replies=replies)
    add_errors(app)

    @app.get("/health")
    async def health() -> JSONResponse:
        states = {one.url: "ok" if one.up else "down" for one in backends.all}
        well = any(one.up for one in backends.all)
        found = {"status": "ok" if well else "failed", "backends": states}
        return JSONResponse(found, 200 if well else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        found = metrics_page(backends, replies)
        return PlainTextResponse(found, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": backends.cards}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        for card in backends.cards:
            if card["id"] == name:
                return card
        raise ApiError(404, f"the model {name!r:.80} does not exist", code="model_not_found")

    def add(path: str) -> None:
        @app.post(path)
        async def passed(http: Http) -> Response:
            busy = sum(one.under_way for one in backends.all)
            if busy >= spec.requests:
                raise ApiError(429, "too many requests are waiting; try again", code="queue_full")
            body = await http.body()
            asked = parsed(body)
            if asked.get("stream") is True:
                return await streamed(backends, path, body, asked.get("model"))
            return await unless_gone(http, complete(backends, path, body, asked.get("model")))

    for path in PASSED:
        add(path)
    return app


def parsed(body: bytes) -> dict[str, Any]:
    """The object of a body. Raises ApiError 400 for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("model"), str | None):
        raise ApiError(400, "the body is a JSON object, its model a string")
    return found


async def complete(backends: Backends, path: str, body: bytes, model: str | None) -> Response:
    """A reply that comes as a whole."""
    async with backends.ask(path, body, model=model, whole=True) as reply:
        kind = reply.headers.get("content-type")
        return Response(reply.content, reply.status_code, media_type=kind)


async def unless_gone(http: Http, work: Coroutine[Any, Any, Response]) -> Response:
    """What the work gives; it is given up where the client leaves first."""

    async def watch() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else Response(status_code=499)
    finally:
        for task in (working, watching):
            task.cancel()


class Passed(StreamingResponse):
    """A stream of another server; whatever becomes of the client, that call is ended."""

    def __init__(self, reply: httpx.Response, asking: AsyncExitStack) -> None:
        kind = reply.headers.get("content-type")
        super().__init__(passed_on(reply), reply.status_code, media_type=kind)
        self.asking = asking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.asking:
            await super().__call__(scope, receive, send)


async def passed_on(reply: httpx.Response) -> AsyncGenerator[bytes]:
    """A stream as it comes; one that breaks off ends with an error in OpenAI's form."""
    try:
        async for piece in reply.aiter_bytes():
            yield piece
    except httpx.HTTPError:
        error = ApiError(502, "the server behind this one broke off", code="broken_off")
        yield b"\n\n" + sse(error.body) + DONE


async def streamed(backends: Backends, path: str, body: bytes, model: str | None) -> Response:
    """A reply in pieces."""
    async with AsyncExitStack() as stack:
        asking = backends.ask(path, body, model=model, whole=False)
        reply = await stack.enter_async_context(asking)
        return Passed(reply, stack.pop_all())


def metrics_page(backends: Backends, replies: Counter[tuple[str, int]]) -> str:
    """Prometheus' page of a server in front."""
    page = Page()
    rows = [
        f'NAME{{route="{route}",status="{status}"}} {count}'
        for (route, status), count in sorted(replies.items())
    ]
    page.put("replies_total", "counter", "Replies by route and status.", rows)

    def each(name: str, kind: str, what: str, values: list[int]) -> None:
        names = [one.url for one in backends.all]
        rows = [f'NAME{{backend="{u}"}} {v}' for u, v in zip(names, values, strict=True)]
        page.put(name, kind, what, rows)

    all_ = backends.all
    each("backend_up", "gauge", "Whether it answered last.", [int(one.up) for one in all_])
    each("backend_running", "gauge", "Calls under way.", [one.under_way for one in all_])
    each("backend_calls_total", "counter", "Calls.", [one.calls for one in all_])
    retries = [backends.retries[one.url] for one in all_]
    each("backend_retries_total", "counter", "Calls that another one got.", retries)
    return page.text
