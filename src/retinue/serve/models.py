"""The models of one server, each with an engine of its own, and their adapters."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from retinue.core.errors import RetinueError
from retinue.serve.adapters import Put
from retinue.serve.failures import ApiError, as_api
from retinue.serve.service import ServeSpec, Service

Opener = Callable[[str, str], Service]
"""(path, name) -> a model that is ready to be started. Raises RetinueError. Slow."""
Attach = Callable[[Service, str], Put]
"""(service, folder) -> what puts the folder's adapter into the model. Raises RetinueError. Slow."""


class Models:
    """Models by the names that requests use; the first answers requests that name none.

    open, attach: how models and adapters are read while the server runs; None: nothing is loaded.
    Its methods run in the event loop.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        open: Opener | None = None,
        attach: Attach | None = None,
    ) -> None:
        assert services, "a server has a model"
        self.held = {service.name: service for service in services}
        assert len(self.held) == len(services), "two models of one name"
        self.spec: ServeSpec = services[0].spec
        self.open, self.attach = open, attach
        self.replies: Counter[tuple[str, int]] = Counter()
        self.loading = asyncio.Lock()

    @property
    def first(self) -> Service:
        return next(iter(self.held.values()))

    @property
    def sound(self) -> bool:
        """Whether every model can answer."""
        return bool(self.held) and all(one.background.sound for one in self.held.values())

    def start(self) -> None:
        for service in self.held.values():
            service.background.start()

    def close(self) -> None:
        for service in self.held.values():
            service.background.close()

    def pick(self, model: str | None, adapter: str | None = None) -> tuple[Service, str]:
        """Who answers, and through which adapter; a model's name may be that of an adapter.

        Raises ApiError 404 for a name that is not loaded.
        """
        service, chosen = None, adapter or ""
        if model is None and self.held:
            service = self.first
        elif model is not None:
            service = self.held.get(model)
        if service is None and adapter is None:
            having = [one for one in self.held.values() if model in one.engine.adapters.held]
            if len(having) == 1:
                service, chosen = having[0], model or ""
        if service is None:
            raise ApiError(
                404,
                f"the model {model!r:.80} does not exist; this server has {', '.join(self.held)}",
                param="model",
                code="model_not_found",
            )
        if chosen and chosen not in service.engine.adapters.held:
            known = ", ".join(service.engine.adapters.held) or "none"
            raise ApiError(
                404,
                f"the model {service.name!r} has no adapter {chosen!r:.80}; it has {known}",
                param="adapter",
                code="adapter_not_found",
            )
        return service, chosen

    # ------------------------------------------------------------------ while it runs

    async def load(self, path: str, name: str) -> Service:
        """One model more. Raises ApiError where the name is taken or the model cannot be read."""
        async with self.loading:
            if self.open is None:
                raise ApiError(400, "this server loads no models", code="unsupported")
            if name in self.held:
                raise ApiError(400, f"a model {name!r:.80} is loaded already", param="name")
            try:
                service = await asyncio.to_thread(self.open, path, name)
            except RetinueError as error:
                raise as_api(error) from error
            service.background.start()
            self.held[name] = service
            return service

    async def unload(self, name: str) -> None:
        """One model less, once what it has under way is answered; new requests find it gone."""
        async with self.loading:
            service, _ = self.pick(name, "")
            if len(self.held) == 1:
                raise ApiError(400, "the last model stays", param="name")
            del self.held[name]
        end = time.monotonic() + service.spec.timeout_s
        while service.under_way and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(service.background.close)

    async def add_adapter(self, model: str | None, name: str, folder: str) -> Service:
        """One adapter more. Raises ApiError where the name is taken or it does not fit."""
        async with self.loading:
            service, _ = self.pick(model, "")
            if self.attach is None:
                raise ApiError(400, "this server loads no adapters", code="unsupported")
            try:
                put = await asyncio.to_thread(self.attach, service, folder)
                await self._ordered(service, lambda: load_adapter(service, name, folder, put))
            except RetinueError as error:
                raise as_api(error) from error
            return service

    async def drop_adapter(self, model: str | None, name: str) -> Service:
        """One adapter less. Raises ApiError 404 for an unknown one, 409 while requests use it."""
        async with self.loading:
            service, _ = self.pick(model, name)
            try:
                await self._ordered(service, lambda: service.engine.drop_adapter(name))
            except RetinueError as error:
                raise ApiError(409, str(error), param="name", code="busy") from error
            return service

    async def _ordered(self, service: Service, work: Callable[[], None]) -> None:
        await asyncio.wrap_future(service.background.order(work))


def load_adapter(service: Service, name: str, folder: str, put: Put) -> None:
    """One adapter more, under the name that requests use; while nothing else touches the engine."""
    service.engine.adapters.add(name, put, folder=folder)
