"""Before any route: API keys, the size of bodies, a count of replies."""

from __future__ import annotations

import hmac
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retinue.serve.failures import ApiError

OPEN = ("/health",)
"""Paths that need no key."""
ADMIN = "/admin/"
"""How paths begin that need a key of their own."""
TOGETHER = 16
"""Largest bodies that may be in memory side by side."""


class Guard:
    """ASGI middleware. keys: any of them opens the API, none at all leaves it open to everyone.

    admin: keys of the routes below /admin/, which nobody may use where there are none; they open
    the others, too. replies: counts by route and status.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: tuple[str, ...],
        body_bytes: int,
        replies: Counter[tuple[str, int]],
        admin: tuple[str, ...] = (),
    ) -> None:
        self.app, self.replies, self.body_bytes = app, replies, body_bytes
        self.admin = [key.encode() for key in admin]
        self.keys = [*(key.encode() for key in keys), *(self.admin if keys else ())]
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self.replies[route, message["status"]] += 1
            await send(message)

        given = headers.get(b"authorization", b"")
        if scope["path"].startswith(ADMIN) and not self.admin:
            error = ApiError(403, "this server was started without admin keys", code="no_admin")
            await _answer(error, counted)
            return
        keys = self.admin if scope["path"].startswith(ADMIN) else self.keys
        if scope["path"] not in OPEN and not admits(keys, given):
            await _answer(
                ApiError(401, "a valid API key is needed", code="invalid_api_key"), counted
            )
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.body_bytes:
            await _answer(self._too_large(), counted)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            size = len(message.get("body", b""))
            read, self.held = read + size, self.held + size  # a body lives as long as its request
            if read > self.body_bytes:
                raise HTTPException(413, self._too_large().message)
            if self.held > TOGETHER * self.body_bytes:
                raise HTTPException(429, "too much data is under way; try again")
            return message

        try:
            await self.app(scope, bounded, counted)
        finally:
            self.held -= read

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"a request has at most {self.body_bytes} bytes", code="request_too_large"
        )


def admits(keys: Sequence[bytes], header: bytes) -> bool:
    """Whether an Authorization header has one of the keys; without any key everyone may pass."""
    if not keys:
        return True
    kind, _, given = header.partition(b" ")
    found = [hmac.compare_digest(given.strip(), key) for key in keys]
    return kind.lower() == b"bearer" and any(found)


async def _answer(error: ApiError, send: Any) -> None:
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (413, 429):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
