"""POST of JSON to another process of the protocol."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

WAIT = 5.0
"""Seconds that a process may take to accept a call, or to answer a short one."""
LONG = 600.0
"""Seconds between two pieces of an answer: a request may wait in a queue."""

Broken = (OSError, http.client.HTTPException, ValueError)
"""What a call to a process that is not there, or talks otherwise, ends with."""


def post(address: str, route: str, body: Any = None) -> Any:
    """The parsed reply of a short call. Raises one of `Broken`."""
    with _Call(address, route, body) as reply:
        return json.loads(reply.read())


def stream(address: str, route: str, body: Any) -> Iterator[bytes]:
    """The reply as it comes. Raises one of `Broken`."""
    with _Call(address, route, body, wait=LONG) as reply:
        while piece := reply.read1(1 << 16):
            yield piece


class _Call:
    def __init__(self, address: str, route: str, body: Any, *, wait: float = WAIT) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{address!r} is no address of a worker")
        self.link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT)
        self.path, self.wait = parts.path.rstrip("/") + route, wait
        self.data = b"" if body is None else json.dumps(body).encode()

    def __enter__(self) -> http.client.HTTPResponse:
        try:
            self.link.connect()
            self.link.sock.settimeout(self.wait)
            headers = {"Content-Type": "application/json"}
            self.link.request("POST", self.path, self.data, headers)
            reply = self.link.getresponse()
            if reply.status != 200:
                raise ValueError(f"{self.path} answers {reply.status}")
        except BaseException:
            self.link.close()
            raise
        return reply

    def __exit__(self, *_: object) -> None:
        self.link.close()
