"""LLaVA's model worker over our engine: its two routes, its registration and heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.requests import Request as Http

from retinue.core.errors import ConfigError, RequestError, RetinueError
from retinue.core.log import get_logger
from retinue.decode.sampling import SamplingParams
from retinue.hub.elastic import make_elastic
from retinue.model.retinue import Retinue
from retinue.processor import Processor
from retinue.serve.answers import Pieces
from retinue.serve.failures import ApiError
from retinue.serve.llava import BUSY, FAILED, LONGEST, TOO_LONG
from retinue.serve.llava.controller import message
from retinue.serve.llava.link import Broken, post
from retinue.serve.llava.reporting import BEAT, report_while_running
from retinue.serve.llava.words import Words
from retinue.serve.messages import contents
from retinue.serve.prompt import MARK
from retinue.serve.request import Request
from retinue.serve.service import GoneError, Place, Service, fresh_seed
from retinue.types import Media


def pools(model: Retinue, processor: Processor) -> None:
    """Let a model answer at any scale by the original's rule, if its tokens have a grid."""
    with contextlib.suppress(ConfigError):
        make_elastic(model, processor, rounding="original")


@dataclass(slots=True, kw_only=True)
class Worker:
    """One model as a worker at `address`; controller None: it registers nowhere."""

    service: Service
    address: str
    controller: str | None = None
    beat: float = BEAT

    @property
    def status(self) -> dict[str, Any]:
        return {
            "model_names": [self.service.name],
            "speed": 1,
            "queue_length": self.service.under_way,
        }

    def register(self) -> None:
        """Tell the controller of this worker. Raises one of `Broken`."""
        assert self.controller is not None
        body = {
            "worker_name": self.address,
            "check_heart_beat": True,
            "worker_status": self.status,
        }
        post(self.controller, "/register_worker", body)

    def report(self) -> None:
        """A heartbeat; a controller that does not know this worker is told of it."""
        if self.controller is None:
            return
        body = {"worker_name": self.address, "queue_length": self.service.under_way}
        try:
            if not post(self.controller, "/receive_heart_beat", body)["exist"]:
                self.register()
        except (*Broken, KeyError, TypeError) as error:
            get_logger().warning("the controller %s does not answer: %s", self.controller, error)

    async def keep_reporting(self) -> None:
        """Heartbeats until cancelled, the first of which registers."""
        while True:
            await asyncio.to_thread(self.report)
            await asyncio.sleep(self.beat)


def add_worker(app: FastAPI, worker: Worker) -> None:
    """The worker's routes beside those that `app` has; it reports while the app runs."""
    report_while_running(app, worker.keep_reporting)

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return worker.status

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(http: Http) -> Response:
        place = worker.service.place(1)
        try:
            body = await http.json()
        except BaseException:
            place.release()
            raise
        found = Pieces(answer(worker, body, place, http), place)
        del found.headers["content-type"]
        return found


async def answer(worker: Worker, body: Any, place: Place, http: Http) -> AsyncGenerator[bytes]:
    """Messages with the prompt and all that was said so far; any failure is one message."""
    reporting = asyncio.create_task(asyncio.to_thread(worker.report))
    try:
        async with worker.service.preparing:
            request, prompt, stop = await asyncio.to_thread(ask, worker.service, body)
        if request is None:
            yield message(prompt + TOO_LONG, 0)
            return
        worker.service.engine.check_room(request)
        words, text = Words(worker.service.processor), prompt
        async with aclosing(worker.service.follow([request], place, http)) as events:
            async for _, event in events:
                assert event.token is not None
                text = without(text + words.push(event.token), stop)
                yield message(text, 0)
        yield message(without(text + words.finish(), stop), 0)
    except GoneError:
        return
    except (RetinueError, ApiError, KeyError, TypeError, ValueError) as error:
        get_logger().warning("a request of the worker failed: %s", error)
        yield message(BUSY, FAILED)
    finally:
        place.release()
        await reporting
        await asyncio.to_thread(worker.report)


def without(text: str, stop: str) -> str:
    """The original cuts a stop string from the end of what it shows, and goes on generating."""
    return text[: -len(stop)] if stop and text.endswith(stop) else text


def ask(service: Service, body: dict[str, Any]) -> tuple[Request | None, str, str]:
    """(request, prompt, stop) of a body; no request where the prompt leaves no room.

    Raises KeyError, TypeError, ValueError, RetinueError, ApiError for a body that is wrong.
    """
    prompt, stop = body["prompt"], body["stop"]
    if not isinstance(prompt, str) or not isinstance(stop, str):
        raise TypeError("prompt and stop are strings")
    limits = service.spec.pictures
    images = body.get("images") or []
    if len(images) > limits.count or len(images) != prompt.count(MARK):
        raise RequestError(f"{len(images)} pictures for {prompt.count(MARK)} {MARK}")
    media = [Media(source=contents(f"data:;base64,{one}", "images", limits)) for one in images]
    plan = service.processor.plan
    scale = body.get("matryoshka_vis_token_scale")
    ids = [service.processor.tokenizer.call(part) for part in prompt.split(MARK)]
    config = plan.config.get_text_config()
    context = int(getattr(config, "max_position_embeddings", None) or 2048)
    rows, cols = next(iter(plan.shapes.values())).grid
    room = context - sum(map(len, ids)) - len(media) * rows * cols
    most = min(int(body.get("max_new_tokens", 256)), LONGEST, room)
    if most < 1:
        return None, prompt, stop
    temperature = float(body.get("temperature", 1.0))
    params = SamplingParams.parse(
        {
            "max_new_tokens": most,
            "temperature": temperature if temperature > 0.001 else 0.0,
            "top_p": float(body.get("top_p", 1.0)),
            "seed": fresh_seed(),
        },
        where="request",
    )
    id = f"{fresh_seed():x}"
    budget = None if scale is None else int(scale)
    return service.prompts.bare(id, prompt, media, params=params, budget=budget), prompt, stop
