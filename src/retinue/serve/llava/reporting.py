"""Heartbeats that an application sends for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI

BEAT = 15.0
"""Seconds between heartbeats."""


def report_while_running(app: FastAPI, keep_reporting: Callable[[], Awaitable[None]]) -> None:
    """Run `keep_reporting` beside what `app` does from its start to its end, then cancel it."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            reporting = asyncio.ensure_future(keep_reporting())
            yield
            reporting.cancel()

    app.router.lifespan_context = lifespan
