"""Mutated requests: every one gets an answer in OpenAI's form, none a server's error."""

import http.client
import json
import sys
import urllib.parse
from pathlib import Path

import pytest

from loopback_app import listening
from retinue.hub.elastic import make_elastic
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.service import ServeSpec, Service
from tiny import tiny_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNT = 150


@pytest.fixture(scope="module")
def service():
    model, processor = tiny_model(seed=5)
    make_elastic(model, processor, scales=[1, 4, 16])
    spec = ServeSpec(choices=2, max_tokens=4, body_bytes=20_000)
    return Service(model, processor, name="tiny", engine=EngineSpec(block=4), spec=spec)


def test_no_request_breaks_the_server(service, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from campaign_mutate import requests

    statuses = []
    with listening(create_app(service)) as address:
        where = urllib.parse.urlsplit(address)
        for route, data in requests(COUNT):
            link = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
            link.request("POST", route, data, {"content-type": "application/json"})
            reply = link.getresponse()
            text = reply.read()
            link.close()
            statuses.append(reply.status)
            assert reply.status < 500, (route, data, text)
            if reply.status >= 400:
                assert json.loads(text)["error"]["message"], (route, data)
        assert service.background.broken is None
    service.engine.check_integrity()
    assert not service.under_way
    assert statuses.count(200) > COUNT / 30
    assert statuses.count(400) > COUNT / 4
