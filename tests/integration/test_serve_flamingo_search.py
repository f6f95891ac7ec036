"""A search of Instruct-Flamingo's route ends when its client leaves, or when its time is up."""

from __future__ import annotations

import json
import socket

import httpx

from loopback_app import listening
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.flamingo import ROUTE, CleverFlamingo, add_flamingo
from retinue.serve.service import ServeSpec, Service
from serve_client import until
from tiny_serve import fused

CROSS = {"kind": "cross", "every": 1, "heads": 2, "head_width": 8, "ff_mult": 1}
ARGS = {
    "max_new_token": 1500, "num_beams": 4, "temperature": 1.0, "top_k": 20, "top_p": 0.9,
    "do_sample": False, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
}  # fmt: skip


def body(**args: int) -> bytes:
    content = {"prompt": "the", "imgpaths": [], "args": {**ARGS, **args}}
    return json.dumps({"content_lst": content, "typ": "None"}).encode()


def test_a_search_ends_with_its_client_and_with_its_time() -> None:
    service = Service(*fused(CROSS), name="tiny", engine=EngineSpec(block=4), spec=ServeSpec())
    app = create_app(service)
    add_flamingo(app, CleverFlamingo(service=service))
    with listening(app) as address:
        host, port = address.removeprefix("http://").split(":")
        data = body()
        head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as link:
            link.sendall(head.encode() + data)
            until(lambda: service.background._searching)
        until(lambda: service.metrics.cancelled == 1)
        until(lambda: not service.background._searching)

        service.spec = ServeSpec(timeout_s=0.3)
        late = httpx.post(f"{address}{ROUTE}", content=data, timeout=60)
        assert late.status_code == 503
        assert "0.3 seconds" in late.json()["detail"]
        until(lambda: not service.background._searching)

        service.spec = ServeSpec()
        short = httpx.post(f"{address}{ROUTE}", content=body(max_new_token=3), timeout=60)
        assert short.status_code == 200
    assert service.metrics.cancelled == 2
    service.engine.check_integrity()
