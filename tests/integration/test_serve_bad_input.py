"""Mutated requests: every one gets an answer in OpenAI's form, none a server's error."""

import copy
import http.client
import json
import random
import urllib.parse

import pytest

from loopback_app import listening
from retinue.hub.elastic import make_elastic
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.service import ServeSpec, Service
from tiny import tiny_model

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
ODD = [None, True, -1, 0, 1, 2**70, 1.5, float("nan"), "", "x", "\ud800", "\0", [], {}, [[]]]
ODD += [[None], {"a": 1}, "data:,", PIXEL, "http://[", [{"type": "text"}], 10**400, "é" * 300]
BODIES = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be short"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": PIXEL}, "visual_tokens": 4},
                    {"type": "text", "text": "what?"},
                ],
            },
        ],
        "max_tokens": 2,
        "temperature": 0.5,
        "stream": False,
        "stop": ["e"],
        "n": 1,
        "logprobs": True,
        "top_logprobs": 1,
        "seed": 3,
        "visual_tokens": 1,
    },
    "/v1/completions": {
        "model": "tiny",
        "prompt": ["the", "red"],
        "max_tokens": 2,
        "logprobs": 1,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
    },
    "/tokenize": {"messages": [{"role": "user", "content": "what?"}], "visual_tokens": 4},
    "/detokenize": {"tokens": [3, 4, 5]},
    "/worker_generate_stream": {},
}
COUNT = 150


def places(value, path=()):
    """Paths of everything inside a body."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(body, chance):
    body = copy.deepcopy(body)
    for _ in range(chance.randint(1, 2)):
        *path, last = chance.choice([p for p in places(body) if p] or [("new",)])
        inner = body
        for key in path:
            inner = inner[key]
        way = chance.random()
        if way < 0.2 and isinstance(inner, dict):
            inner.pop(last, None)
        elif way < 0.3 and isinstance(inner, dict):
            inner[chance.choice(["new", "model", "role"])] = chance.choice(ODD)
        else:
            inner[last] = chance.choice(ODD)
    return body


@pytest.fixture(scope="module")
def service():
    model, processor = tiny_model(seed=5)
    make_elastic(model, processor, scales=[1, 4, 16])
    spec = ServeSpec(choices=2, max_tokens=4, body_bytes=20_000)
    return Service(model, processor, name="tiny", engine=EngineSpec(block=4), spec=spec)


def test_no_request_breaks_the_server(service):
    chance = random.Random(0)
    statuses = []
    with listening(create_app(service)) as address:
        where = urllib.parse.urlsplit(address)
        for number in range(COUNT):
            route = chance.choice(list(BODIES))
            data = json.dumps(mutated(BODIES[route], chance)).encode()
            if number % 25 == 1:
                data = b'{"messages":' + b"[" * 800 + b"]" * 800 + b"}"
            if number % 10 == 0:  # bytes, too
                data = bytes(chance.randrange(256) if chance.random() < 0.02 else b for b in data)
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
    assert statuses.count(200) > COUNT / 20
    assert statuses.count(400) > COUNT / 4
