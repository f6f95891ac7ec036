"""What stands between HTTP and the engine: limits, preparation, who waits for which event."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import Field
from starlette.requests import Request as Http

from retinue.core.errors import RetinueError
from retinue.core.log import get_logger
from retinue.core.spec import Spec
from retinue.model.retinue import Retinue
from retinue.parallel.launch import peers_lost
from retinue.processor import Processor
from retinue.serve.background import Background
from retinue.serve.beams import Beams
from retinue.serve.engine import Engine, EngineSpec
from retinue.serve.failures import ApiError, as_api
from retinue.serve.fetch import Fetcher
from retinue.serve.guide import Grammars
from retinue.serve.messages import PictureLimits, sample_of
from retinue.serve.metrics import Metrics
from retinue.serve.pressure import Pressure
from retinue.serve.prompt import Prompts, told
from retinue.serve.request import Event, Request
from retinue.serve.schema import ChatMessage
from retinue.types import Sample


class ServeSpec(Spec):
    """Limits of a server.

    requests: under way or waiting, more are answered 429; timeout_s: of a whole reply; body_bytes:
    of a request, more is answered 413; choices: answers of one call; max_tokens: longest answer of
    a request that names no limit; keys: API keys, none = everyone may ask; admin: keys that may
    also load and unload models, none = nobody may.
    """

    requests: int = Field(default=256, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    body_bytes: int = Field(default=64 * 2**20, ge=1)
    choices: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=1024, ge=1)
    pictures: PictureLimits = PictureLimits()
    pressure: Pressure = Pressure()
    keys: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


T = TypeVar("T")
Search = Callable[[Callable[[], bool]], T]
"""Long work, given what it calls between two of its steps: True says that it is to end now."""
PREPARING = 4
"""Calls whose pictures are decoded side by side: each may take a few hundred megabytes."""


class GoneError(Exception):
    """The client has left."""


@dataclass(slots=True, eq=False)
class Place:
    """A part of the server's limit on requests, held by one call until it gives it back."""

    service: Service
    count: int
    started: float = field(default_factory=time.monotonic)
    held: bool = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self.service.under_way -= self.count


class Service:
    """One model behind an API. Its methods run in the event loop, all but `prepare`'s work.

    path: where the model came from; fetcher: gets pictures from the web, default: by `spec`.
    """

    def __init__(
        self,
        model: Retinue,
        processor: Processor,
        *,
        name: str,
        engine: EngineSpec | None = None,
        spec: ServeSpec | None = None,
        fetcher: Fetcher | None = None,
        path: str = "",
    ) -> None:
        self.name, self.path, self.spec = name, path, spec or ServeSpec()
        self.fetcher = fetcher or self.spec.pictures.fetcher()
        self.processor = processor
        self.engine = Engine(model, processor, spec=engine)
        self.prompts = Prompts(processor, self.engine.features, self.engine.adapters)
        self.grammars = Grammars(processor.tokenizer, list(self.engine.ends))
        self.background = Background(self.engine)
        self.metrics = Metrics()
        self.under_way = 0
        self.preparing = asyncio.Semaphore(PREPARING)
        self.born = int(time.time())

    def sample(self, id: str, messages: Sequence[ChatMessage]) -> Sample:
        """The conversation of a request, its pictures read; slow. Raises ApiError."""
        return sample_of(id, messages, limits=self.spec.pictures, fetcher=self.fetcher)

    @property
    def waiting(self) -> int:
        """Requests that are not computed yet."""
        return max(self.under_way - len(self.engine.scheduler.running), 0)

    def budget(self, wanted: int | None, least: int | None) -> int | None:
        """Visual tokens per view that a request gets just now; None: the model's usual number.

        least: the number that the request can do with, None: it does not say.
        """
        plan = self.processor.plan
        if not plan.spec.connector.elastic:
            return wanted
        found = self.spec.pressure.budget(
            self.waiting,
            wanted=wanted,
            least=least,
            budgets=plan.budgets,
            usual=plan.per_view().length,
        )
        self.metrics.shrunk += found != wanted
        return found

    def place(self, count: int) -> Place:
        """Room for so many requests. Raises ApiError 429 where there is none, 503 if broken."""
        if not self.background.sound:
            raise ApiError(503, "the engine has failed; restart the server", code="engine_failed")
        if count > self.spec.requests:
            raise ApiError(400, f"one call makes at most {self.spec.requests} requests", param="n")
        if self.under_way + count > self.spec.requests:
            raise ApiError(429, "too many requests are waiting; try again", code="queue_full")
        self.under_way += count
        return Place(self, count)

    async def worked(self, make: Callable[[], T]) -> T:
        """What slow work gives, done in another thread, a few side by side. Raises ApiError."""
        try:
            async with self.preparing:
                return await asyncio.to_thread(make)
        except RetinueError as error:
            raise as_api(error) from error

    async def prepare(self, make: Callable[[], list[Request]], *, limited: bool) -> list[Request]:
        """Requests, made in another thread; `limited` says whether they name their length.

        Raises ApiError for what the model, its budgets or the engine's room cannot serve.
        """
        requests = await self.worked(make)
        if not limited:
            requests = [self._shortened(request) for request in requests]
        try:
            for request in requests:
                self.engine.check_room(request)
        except RetinueError as error:
            raise as_api(error) from error
        for request in requests:
            budget = told(request, self.processor.plan)[0]
            if budget is not None:
                self.metrics.budgets[budget] += len(request.pictures)
        return requests

    def _shortened(self, request: Request) -> Request:
        """At most as long an answer as the keys and values have room for."""
        blocks = self.engine.blocks
        room = blocks.usable * blocks.size - len(request.example.tokens)
        if not 1 <= room < request.params.max_new_tokens:
            return request
        params = request.params.model_copy(update={"max_new_tokens": room})
        return replace(request, params=params)

    async def follow(
        self, requests: Sequence[Request], place: Place, http: Http, *, beams: Beams | None = None
    ) -> AsyncGenerator[tuple[int, Event]]:
        """Events of some requests, each with the request's number, until all have ended.

        beams: the requests are choices of one prompt, searched for by `generate`.

        Left early, by whatever cause, the requests that have not ended are cancelled. Raises
        ApiError (503 after the time limit), GoneError where the client has left.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        numbers = {request.id: number for number, request in enumerate(requests)}
        last = dict.fromkeys(numbers, place.started)
        metrics = self.metrics

        def sink(event: Event) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, event)
            except RuntimeError:  # the loop has ended
                self.background.cancel(event.id)

        async def watch() -> None:
            await until_gone(http)
            queue.put_nowait(None)

        watching = asyncio.create_task(watch())
        alive = set(numbers)
        try:
            if beams is not None:
                self.background.submit_beams(requests, beams, sink)
            else:
                for request in requests:
                    self.background.submit(request, sink)
            while alive:
                left = place.started + self.spec.timeout_s - time.monotonic()
                try:
                    event = await asyncio.wait_for(queue.get(), max(left, 0.001))
                except TimeoutError:
                    raise self._too_late() from None
                if event is None:
                    raise GoneError
                now = time.monotonic()
                first = last[event.id] == place.started
                (metrics.first if first else metrics.gap).add(now - last[event.id])
                last[event.id] = now
                if event.finish is not None:
                    alive.discard(event.id)
                if event.error is not None:
                    if not (isinstance(event.error, RetinueError) or peers_lost(event.error)):
                        get_logger().error("a request failed", exc_info=event.error)
                    raise as_api(event.error)
                yield numbers[event.id], event
            metrics.whole.add(time.monotonic() - place.started)
        finally:
            watching.cancel()
            for id in alive:
                self.background.cancel(id)
            metrics.cancelled += bool(alive)
            place.release()

    async def searched(self, work: Search[T], place: Place, http: Http) -> T:
        """What a search in the engine's thread finds; `work` is given what it calls as it goes.

        Left early, by whatever cause, the search is told to end. Raises what `work` raises, and as
        `follow`.
        """
        found: list[T] = []
        left = threading.Event()

        def run(turn: Callable[[], bool]) -> None:
            if not left.is_set():  # it may have waited for another one
                found.append(work(lambda: turn() or left.is_set()))

        search = asyncio.wrap_future(self.background.search(run))
        watching = asyncio.create_task(until_gone(http))
        try:
            rest = place.started + self.spec.timeout_s - time.monotonic()
            done, _ = await asyncio.wait(
                {search, watching}, timeout=max(rest, 0.001), return_when=asyncio.FIRST_COMPLETED
            )
            if search in done:
                search.result()
                return found[0]
            raise GoneError if watching in done else self._too_late()
        finally:
            left.set()
            watching.cancel()
            self.metrics.cancelled += not search.done()

    def _too_late(self) -> ApiError:
        return ApiError(503, f"no reply within {self.spec.timeout_s:g} seconds", code="timeout")


async def until_gone(http: Http) -> None:
    """Wait until the client has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def fresh_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbits(62)
