"""Requests with something wrong in them: bodies of every route, changed in one or two places."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
ODD: list[Any] = [None, True, -1, 0, 1, 2**70, 1.5, float("nan"), "", "x", "\ud800", "\0", [], {}]
ODD += [[[]], [None], {"a": 1}, "data:,", PIXEL, "http://[", "http://127.0.0.1/a.png", "file:///"]
ODD += [[{"type": "text"}], 10**400, "é" * 300, {"type": "json_object"}, {"type": "integer"}]
ODD += [{"type": "string", "pattern": "("}, {"$ref": "#/x"}, {"anyOf": []}, ["a", 1]]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
BODIES: dict[str, dict[str, Any]] = {
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
        "visual_tokens_min": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
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
        "guided_regex": "[a-z]+",
    },
    "/v1/completions?beams": {
        "prompt": "the",
        "max_tokens": 2,
        "num_beams": 2,
        "length_penalty": 1.0,
        "use_beam_search": True,
        "adapter": None,
    },
    "/tokenize": {"messages": [{"role": "user", "content": "what?"}], "visual_tokens": 4},
    "/detokenize": {"tokens": [3, 4, 5]},
    "/clever_flamingo": {
        "content_lst": {
            "prompt": "### Human: what? ### Assistant:",
            "imgpaths": [],
            "args": {
                "max_new_token": 2,
                "num_beams": 1,
                "temperature": 1.0,
                "top_k": 5,
                "top_p": 0.9,
                "do_sample": True,
                "length_penalty": 1.0,
                "no_repeat_ngram_size": 2,
            },
        },
        "typ": "None",
    },
    "/admin/models/load": {"path": "/nowhere", "name": "x"},
    "/admin/adapters/unload": {"name": "x", "model": "tiny"},
    "/worker_generate_stream": {},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a body."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(body: Any, chance: random.Random) -> Any:
    """A copy with one or two places removed, added or replaced."""
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
            inner[chance.choice(["new", "model", "role"])] = copy.deepcopy(chance.choice(ODD))
        else:
            inner[last] = copy.deepcopy(chance.choice(ODD))
    return body


def requests(count: int, *, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(route, body): mutated ones, nested ones, ones with bytes changed at random."""
    chance = random.Random(seed)
    for number in range(count):
        route = chance.choice(list(BODIES))
        data = json.dumps(mutated(BODIES[route], chance)).encode()
        if number % 25 == 1:
            data = b'{"messages":' + b"[" * 800 + b"]" * 800 + b"}"
        if number % 10 == 0:
            data = bytes(chance.randrange(256) if chance.random() < 0.02 else b for b in data)
        yield route, data
