"""Recorded calls to LLaVA's controller and worker, replayed to ours: the same replies."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import cases, compared

from loopback_app import free_port, listening
from retinue.hub.load import load
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.llava.controller import Controller, create_controller
from retinue.serve.llava.worker import Worker, add_worker, pools
from retinue.serve.service import Service

PICTURE = re.compile(r"<base64 of (.+)>")


def model_case(case: Path) -> Path:
    """Whose model the calls were recorded with: the case's own, or the one its README names."""
    if (case / "model").exists():
        return case
    with_model = cases("m3-llava", "*", having="model")
    text = (case / "README.md").read_text("utf-8")
    named = [found for found in with_model if f"`{found.name}`" in text]
    return (named or [c for c in with_model if c.name.startswith("llava15")])[0]


def needs_worker(call: dict[str, Any]) -> bool:
    """Whether a worker must be there before this call."""
    reply = call.get("response") or {}
    return call["server"] == "worker" or bool(reply.get("models") or reply.get("model_names"))


def filled(value: Any, folder: Path, places: dict[str, str]) -> Any:
    """The recorded body with pictures and this run's addresses in it."""
    if isinstance(value, dict):
        return {key: filled(item, folder, places) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, folder, places) for item in value]
    if isinstance(value, str) and (named := PICTURE.fullmatch(value)):
        return base64.b64encode((folder / named[1]).read_bytes()).decode()
    return places.get(value, value) if isinstance(value, str) else value


def call_of(address: str, call: dict[str, Any], body: Any) -> tuple[int, str, bytes]:
    data = None if body is None else json.dumps(body).encode()
    if data is None and call["method"] == "POST":
        data = b""
    request = urllib.request.Request(address + call["route"], data, method=call["method"])
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.headers.get("content-type"), reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("content-type"), error.read()


@pytest.mark.parametrize("case", cases("m3-llava", "serve*"), ids=lambda case: case.name)
def test_replies_and_messages(case: Path) -> None:
    calls = json.loads((case / "transcript.json").read_text("utf-8"))
    source = model_case(case)
    model, processor = load(source / "model", dtype=torch.float32)
    pools(model, processor)
    name = next(c["request"]["model"] for c in calls if c["server"] == "worker" and c["request"])
    service = Service(model, processor, name=name, engine=EngineSpec(block=4))
    controller = Controller()
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(listening(create_controller(controller)))
        port = free_port()
        own = f"http://127.0.0.1:{port}"
        known = {
            call["response"]["address"]
            for call in calls
            if (call.get("request") or {}).get("model") == name
            and "address" in (call.get("response") or {})
        }
        places = {address: own for address in known if address}
        started = False
        for call in calls:
            if not started and needs_worker(call):
                app = create_app(service)
                add_worker(app, Worker(service=service, address=own, controller=front))
                stack.enter_context(listening(app, port=port))
                end = time.monotonic() + 10
                while not controller.models:
                    assert time.monotonic() < end
                    time.sleep(0.01)
                started = True
            address = own if call["server"] == "worker" else front
            body = filled(call["request"], source, places)
            status, kind, data = call_of(address, call, body)
            assert status == call["status"], call["name"]
            assert kind == call["content_type"], call["name"]
            if "messages" in call:
                assert data.endswith(b"\0") == call["raw_ends_with_nul"]
                found = [json.loads(part) for part in data.split(b"\0")[:-1]]
                assert found == call["messages"], call["name"]
            elif "response_text" in call:
                assert data.decode() == call["response_text"], call["name"]
            else:
                expected = filled(call["response"], source, places)
                found = json.loads(data)
                if isinstance(found, dict) and "models" in found:  # a set in the original
                    found, expected = sorted(found["models"]), sorted(expected["models"])
                assert found == expected, call["name"]
            while service.under_way:  # the recorded queue lengths are those of a worker at rest
                time.sleep(0.01)
    service.engine.check_integrity()
    compared(case)
