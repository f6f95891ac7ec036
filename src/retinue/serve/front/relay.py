"""LLaVA's model worker over other servers: its prompts become conversations of OpenAI's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from starlette.requests import Request as Http

from retinue.core.errors import RetinueError
from retinue.core.log import get_logger
from retinue.serve.failures import ApiError
from retinue.serve.front.backends import Backends
from retinue.serve.front.prompts import conversation, messages_of
from retinue.serve.llava import BUSY, FAILED, LONGEST
from retinue.serve.llava.controller import message
from retinue.serve.llava.link import Broken, post
from retinue.serve.llava.reporting import BEAT, report_while_running
from retinue.text.template import Template


@dataclass(slots=True, kw_only=True)
class Relay:
    """All models of the servers as one worker at `address`; template: how clients write prompts."""

    backends: Backends
    template: Template
    address: str
    controller: str | None = None
    beat: float = BEAT

    @property
    def status(self) -> dict[str, Any]:
        return {
            "model_names": [str(card["id"]) for card in self.backends.cards],
            "speed": 1,
            "queue_length": sum(one.under_way for one in self.backends.all),
        }

    def report(self, known: list[str]) -> list[str]:
        """A heartbeat; other models than were `known` are registered anew."""
        assert self.controller is not None
        status = self.status
        names: list[str] = status["model_names"]
        body = {"worker_name": self.address, "queue_length": status["queue_length"]}
        try:
            exists = post(self.controller, "/receive_heart_beat", body)["exist"]
            if names and (not exists or names != known):
                full = {"worker_name": self.address, "check_heart_beat": True}
                post(self.controller, "/register_worker", {**full, "worker_status": status})
        except (*Broken, KeyError, TypeError) as error:
            get_logger().warning("the controller %s does not answer: %s", self.controller, error)
        return names

    async def keep_reporting(self) -> None:
        """Heartbeats until cancelled."""
        known: list[str] = []
        while self.controller is not None:
            known = await asyncio.to_thread(self.report, known)
            await asyncio.sleep(self.beat)

    def body(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A chat completion for a worker's body. Raises what a wrong one causes."""
        prompt, stop = asked["prompt"], asked["stop"]
        if not isinstance(prompt, str) or not isinstance(stop, str):
            raise TypeError("prompt and stop are strings")
        turns = conversation(prompt, self.template)
        scale = asked.get("matryoshka_vis_token_scale")
        temperature = float(asked.get("temperature", 1.0))
        found = {
            "model": asked.get("model"),
            "messages": messages_of(turns, list(asked.get("images") or [])),
            "temperature": temperature if temperature > 0.001 else 0,
            "top_p": float(asked.get("top_p", 1.0)),
            "max_tokens": min(int(asked.get("max_new_tokens", 256)), LONGEST),
            "stream": True,
        }
        return found | ({} if scale is None else {"visual_tokens": int(scale)})

    async def answer(self, asked: Any) -> AsyncGenerator[bytes]:
        """Messages with the prompt and all that was said so far; any failure is one message."""
        try:
            body = self.body(asked)
            text = str(asked["prompt"])
            data = json.dumps(body).encode()
            path, model = "/v1/chat/completions", body["model"]
            async with self.backends.ask(path, data, model=model, whole=False) as reply:
                if reply.status_code != 200:
                    raise ValueError((await reply.aread()).decode(errors="replace")[:300])
                async for line in reply.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    piece = json.loads(line[6:])
                    if "error" in piece:
                        raise ValueError(str(piece["error"]))
                    for choice in piece["choices"]:
                        fresh = choice["delta"].get("content") or ""
                        if fresh:
                            text += fresh
                            yield message(text, 0)
            yield message(text, 0)
        except (RetinueError, ApiError, httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            get_logger().warning("a request of the worker failed: %s", error)
            yield message(BUSY, FAILED)


def add_relay(app: FastAPI, relay: Relay) -> None:
    """The worker's routes beside those that `app` has; it reports while the app runs."""
    report_while_running(app, relay.keep_reporting)

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return relay.status

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(http: Http) -> Response:
        return StreamingResponse(relay.answer(await http.json()))
