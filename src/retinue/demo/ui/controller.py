"""LLaVA's controller behind the page: it names models and workers, the workers answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from retinue.core.errors import EnvError
from retinue.demo.ui.calls import CONNECT_S
from retinue.demo.ui.client import Client, Model, Piece, RefusedError, Server
from retinue.demo.ui.worker import HEADERS, Worker, budgets_of
from retinue.text.template import Template

REFRESH_S = 60.0
"""Seconds after which the controller is made to look after its workers again."""
WAIT_S = 30.0
"""Seconds for a reply of the controller, which itself waits 5 for each worker that is silent."""


@dataclass(slots=True, kw_only=True)
class ControllerClient:
    """The interface of `Client` over a controller at `url`.

    A worker that serves the OpenAI API as well, as ours do, is asked through it, with `key`;
    another by its own protocol. template: how the latter's models are asked; None: by their names.
    """

    url: str
    key: str = ""
    timeout_s: float = 600.0
    template: Template | None = None
    refreshed: float = float("-inf")
    cards: dict[str, Model] = field(default_factory=dict)

    def models(self) -> list[Model]:
        """All models of all workers. Raises EnvError where the controller cannot be reached."""
        try:
            if time.monotonic() - self.refreshed >= REFRESH_S:
                self.call("/refresh_all_workers")
                self.refreshed = time.monotonic()
                self.cards.clear()
            names = [str(name) for name in self.call("/list_models")["models"]]
            # who asks for an address counts as one more in the worker's queue: once for each name
            for name in names:
                if name not in self.cards:
                    self.cards[name] = self.card(name)
            return [self.cards[name] for name in sorted(names)]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EnvError(
                "no controller of LLaVA's protocol answers",
                where=self.url,
                rule=str(error) or type(error).__name__,
                fix="start one with `retinue serve --as controller`",
            ) from None

    def call(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """The controller's reply. Raises httpx.HTTPError, ValueError."""
        reply = httpx.post(
            f"{self.url}{route}",
            json=body,
            headers=HEADERS,
            timeout=httpx.Timeout(WAIT_S, connect=CONNECT_S),
            trust_env=False,
        )
        reply.raise_for_status()
        return reply.json()

    def card(self, name: str) -> Model:
        """What is known of a model: a worker with the OpenAI API says it, else its name does."""
        address = self.address(name)
        try:
            found = Client(url=address, key=self.key).models() if address else []
        except EnvError:
            found = []
        return next(
            (model for model in found if model.name == name),
            Model(name=name, budgets=budgets_of(name)),
        )

    def address(self, name: str) -> str:
        """Where a model is asked, "" where no worker has it."""
        return str(self.call("/get_worker_address", {"model": name})["address"]).rstrip("/")

    def stream(self, body: dict[str, Any]) -> Iterator[Piece]:
        """Pieces of the answer of one worker. Raises RefusedError with its or our words."""
        try:
            address = self.address(body["model"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"the controller does not answer: {error}") from None
        if not address:
            raise RefusedError(f"no worker has {body['model']!r} any more")
        if speaks_api(address):
            asked: Any = Client(url=address, key=self.key, timeout_s=self.timeout_s)
        else:
            asked = Worker(address=address, template=self.template, timeout_s=self.timeout_s)
        yield from asked.stream(body)


def speaks_api(address: str) -> bool:
    """Whether the OpenAI API is at an address, be it behind a key."""
    try:
        found = httpx.get(f"{address}/v1/models", timeout=CONNECT_S, trust_env=False)
    except httpx.HTTPError:
        return False
    return found.status_code in (200, 401, 403)


def is_controller(url: str) -> bool:
    """Whether a controller is at a URL."""
    try:
        reply = httpx.post(f"{url}/list_models", timeout=CONNECT_S, trust_env=False)
        return reply.status_code == 200 and isinstance(reply.json()["models"], list)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def server_at(url: str, *, key: str = "", template: Template | None = None) -> Server:
    """A controller's client where one answers at `url`, else one of the OpenAI API."""
    url = url.rstrip("/").removesuffix("/v1")
    if is_controller(url):
        return ControllerClient(url=url, key=key, template=template)
    return Client(url=url, key=key)
