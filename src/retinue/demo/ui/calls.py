"""A streamed POST to a server, as every client of the page makes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

CONNECT_S = 10.0


@contextmanager
def posted(
    address: str, body: Mapping[str, Any], *, headers: Mapping[str, str], timeout_s: float
) -> Iterator[httpx.Response]:
    """The reply while it comes; leaving ends the request. No proxy of the environment is used.

    timeout_s: between two pieces. Raises httpx.HTTPError.
    """
    limits = httpx.Timeout(timeout_s, connect=CONNECT_S)
    with (
        httpx.Client(timeout=limits, trust_env=False) as session,
        session.stream("POST", address, json=dict(body), headers=dict(headers)) as reply,
    ):
        yield reply
