"""Servers behind ours: which are well, which models they have, who is asked next."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import Field

from retinue.core.log import get_logger
from retinue.core.spec import Spec
from retinue.serve.failures import ApiError

TIRED = (429, 502, 503)
"""Statuses after which another server is asked."""


class FrontSpec(Spec):
    """urls: addresses of servers, with or without /v1; key: what they want as API key.

    every_s: between two looks at each; answer_s: what a look may take; connect_s: what a connection
    may take; timeout_s: between two pieces of a reply.
    """

    urls: tuple[str, ...] = Field(min_length=1)
    key: str = ""
    every_s: float = Field(default=5.0, gt=0)
    answer_s: float = Field(default=5.0, gt=0)
    connect_s: float = Field(default=5.0, gt=0)
    timeout_s: float = Field(default=600.0, gt=0)


@dataclass(slots=True, eq=False)
class Backend:
    """One server. cards: what it says of its models; under_way: our calls to it."""

    url: str
    up: bool = False
    cards: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    calls: int = 0
    failures: int = 0

    @property
    def models(self) -> list[str]:
        return [str(card["id"]) for card in self.cards]


class Backends:
    """All servers. Methods run in one event loop."""

    def __init__(self, spec: FrontSpec) -> None:
        self.spec = spec
        urls = dict.fromkeys(url.rstrip("/").removesuffix("/v1") for url in spec.urls)
        self.all = [Backend(url) for url in urls]
        headers = {"authorization": f"Bearer {spec.key}"} if spec.key else {}
        self.client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(spec.timeout_s, connect=spec.connect_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        self.retries: Counter[str] = Counter()

    @property
    def cards(self) -> list[dict[str, Any]]:
        """Models of all servers that are up, each once."""
        found: dict[str, dict[str, Any]] = {}
        for one in self.all:
            for card in one.cards if one.up else ():
                found.setdefault(str(card["id"]), card)
        return list(found.values())

    # ------------------------------------------------------------------ health

    async def look(self, one: Backend) -> None:
        """Ask one server for its models; whoever does not say is down."""
        try:
            reply = await self.client.get(f"{one.url}/v1/models", timeout=self.spec.answer_s)
            cards = reply.raise_for_status().json()["data"]
            found = [card for card in cards if isinstance(card, dict) and "id" in card]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if one.up:
                get_logger().warning("%s is down: %s", one.url, error or type(error).__name__)
            one.up = False
            return
        if not one.up:
            get_logger().info("%s is up", one.url)
        one.cards, one.up = found, True

    async def look_around(self) -> None:
        """One look at every server."""
        await asyncio.gather(*(self.look(one) for one in self.all))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks at all servers from time to time, the first time at once."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(self.spec.every_s)
                await self.look_around()

        await self.look_around()
        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await self.client.aclose()

    # ------------------------------------------------------------------ calls

    def pick(self, model: str | None, tried: Sequence[Backend]) -> Backend | None:
        """The least busy server that is up and has the model; None where none is left."""
        having = [
            one
            for one in self.all
            if one.up and one not in tried and (model is None or model in one.models)
        ]
        return min(having, key=lambda one: (one.under_way, one.calls), default=None)

    def known(self, model: str | None) -> bool:
        """Whether some server, up or down, has the model."""
        return model is None or any(model in one.models for one in self.all)

    @asynccontextmanager
    async def ask(
        self, path: str, body: bytes, *, model: str | None, whole: bool
    ) -> AsyncGenerator[httpx.Response]:
        """The reply of one server, after as many tries as there are servers.

        A server that cannot be reached, breaks off before its reply begins (or anywhere in it,
        where `whole` asks for all of it at once) or is too busy gives way to another. Raises
        ApiError: 404 for a model that nobody has, 502 or 503 where no server answers.
        """
        if not self.known(model):
            names = ", ".join(str(card["id"]) for card in self.cards)
            raise ApiError(
                404,
                f"the model {model!r:.80} does not exist; these do: {names}",
                param="model",
                code="model_not_found",
            )
        tried: list[Backend] = []
        last: httpx.Response | None = None
        while (one := self.pick(model, tried)) is not None:
            tried.append(one)
            one.under_way, one.calls = one.under_way + 1, one.calls + 1
            try:
                reply = await self._send(one, path, body, whole=whole)
            except httpx.HTTPError as error:
                get_logger().warning("%s fails: %s", one.url, error or type(error).__name__)
                one.under_way, one.failures = one.under_way - 1, one.failures + 1
                one.up = False  # until the next look
                self.retries[one.url] += 1
                continue
            except BaseException:
                one.under_way -= 1
                raise
            if reply.status_code in TIRED and self.pick(model, tried) is not None:
                await reply.aclose()
                one.under_way -= 1
                self.retries[one.url] += 1
                continue
            last = reply
            break
        if last is None:
            status, code = (502, "backends_failed") if tried else (503, "no_backend")
            raise ApiError(status, "no server behind this one answers; try again", code=code)
        try:
            yield last
        finally:
            tried[-1].under_way -= 1
            await last.aclose()

    async def _send(self, one: Backend, path: str, body: bytes, *, whole: bool) -> httpx.Response:
        headers = {"content-type": "application/json"}
        request = self.client.build_request("POST", one.url + path, content=body, headers=headers)
        reply = await self.client.send(request, stream=True)
        if whole:
            try:
                await reply.aread()
            except BaseException:
                await reply.aclose()
                raise
        return reply
