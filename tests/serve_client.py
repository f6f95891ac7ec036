"""What tests of the server share: pictures as data URIs, messages, bare HTTP, waiting."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

GREEDY = {"temperature": 0, "max_tokens": 8}


def uri(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def turn(text: str, *images: Any) -> list[dict[str, Any]]:
    """One user message; images: pictures, or URLs as they stand."""
    urls = [image if isinstance(image, str) else uri(image) for image in images]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def call(address: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, Any]:
    """(status, parsed reply) of a POST, or of a GET where there is no body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data)
    request.add_header("content-type", "application/json")
    if key:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, parsed(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, parsed(error.read())


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


def until(condition: Callable[[], Any], *, seconds: float = 20) -> None:
    """Wait for something that other threads bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
