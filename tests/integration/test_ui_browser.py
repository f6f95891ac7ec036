"""The web chat in a real browser: upload, ask, stream, slider, two models, drawn boxes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from browser import ask, launched, listed, needs_chromium, opened, until
from loopback_app import listening
from retinue.demo.ui.client import Client, Model
from retinue.demo.ui.mount import with_page
from retinue.demo.ui.page import page
from retinue.serve.app import cards, create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.models import Models
from retinue.serve.service import ServeSpec, Service
from tiny import picture
from tiny_families import elastic

pytestmark = needs_chromium
BOX = "the middle [0.25,0.25,0.75,0.75]"


class Scripted:
    """A server of the OpenAI API that always says the same, and keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.names = ["one", "two"]
        self.gate = threading.Event()
        self.gate.set()
        self.app = FastAPI()

        @self.app.get("/v1/models")
        async def models() -> Any:
            budgets = [1, 4, 16]
            return {"data": [{"id": n, "visual_token_budgets": budgets} for n in self.names]}

        @self.app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            body = await request.json()
            self.seen.append(body)
            if "refuse" in str(body["messages"][-1]["content"])[-40:]:
                return JSONResponse({"error": {"message": "not today"}}, 400)
            return StreamingResponse(self.said(body["model"]), media_type="text/event-stream")

    def said(self, name: str) -> Iterator[str]:
        for word in [f"{name}:", *BOX.split()]:
            yield event({"choices": [{"delta": {"content": word + " "}}]})
            self.gate.wait(60)
        yield event({"choices": [], "usage": {"completion_tokens": 7, "visual_tokens": 4}})
        yield "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def scripted() -> Iterator[tuple[Scripted, str]]:
    server = Scripted()
    with listening(server.app) as api, listening(with_page(page(Client(url=api)), path="")) as own:
        yield server, own


def test_the_page_over_a_server(chromium: Any, scripted: Any, tmp_path: Path) -> None:
    server, address = scripted
    file, outside = tmp_path / "a.png", []
    picture(1, width=48, height=48).save(file)
    with opened(chromium, address, outside) as tab:
        server.gate.clear()  # the first word comes, the others when this is set again
        ask(tab, "Where is it?", file)
        tab.wait_for_selector("#answer >> text=one:")
        early = tab.inner_text("#answer")
        assert BOX not in early  # the answer is shown while it comes
        # meanwhile the box is free for the next question, and stays as the visitor leaves it
        tab.wait_for_function("document.querySelector('#question textarea').value == ''")
        tab.fill("#question textarea", "And now?")
        server.gate.set()
        tab.wait_for_selector(f"#answer >> text={BOX}")
        tab.wait_for_selector("#answer >> text=4 visual tokens")
        tab.wait_for_function("document.querySelectorAll('#answer img').length == 2")  # and the box
        assert tab.input_value("#question textarea") == "And now?"
        assert tab.locator("[aria-label=Share]").count() > 0  # gradio draws it; nobody sees it
        assert tab.locator("[aria-label=Share]:visible").count() == 0
        body = server.seen[-1]
        assert body["model"] == "one"
        assert "visual_tokens" not in body
        assert body["messages"][-1]["content"][0]["image_url"]["url"].startswith("data:image/png;")

        # a smaller budget, and a further turn that carries what was said
        slider = tab.locator("#budget input[type=number]")
        slider.fill("1")
        slider.press("Enter")
        tab.wait_for_selector("#budget >> text=Visual tokens per view: 1")
        tab.press("#question textarea", "Enter")
        tab.wait_for_function("document.querySelector('#answer').innerText.includes('And now?')")
        until(lambda: len(server.seen) == 2)
        assert server.seen[1]["visual_tokens"] == 1
        roles = [message["role"] for message in server.seen[1]["messages"]]
        assert roles == ["user", "assistant", "user"]

        # two models side by side; the server's refusal is shown
        tab.click("#beside input")
        tab.click("ul[role=listbox] >> text=two")
        tab.wait_for_selector("#other", state="visible")
        ask(tab, "please refuse")
        tab.wait_for_selector("#answer >> text=No answer: not today")
        tab.wait_for_selector("#other >> text=No answer: not today")
        assert {body["model"] for body in server.seen[2:]} == {"one", "two"}

        # regenerate asks the same again, clear forgets
        count = len(server.seen)
        tab.click("#again")
        until(lambda: len(server.seen) == count + 2)
        tab.click("#clear")
        tab.wait_for_function(
            "!document.querySelector('#answer').innerText.includes('Where is it?')"
        )
        assert outside == []


def test_an_event_whose_stream_closed_under_it_is_heard_of_later(chromium: Any) -> None:
    """gradio closes its stream after the last event; one that joins just then is told nothing."""
    server, closes, closed = Scripted(), threading.Event(), []

    def data(route: Any) -> None:
        if not closes.is_set():
            return route.continue_()
        closed.append(route)
        return route.fulfill(body=event({"msg": "close_stream"}), content_type="text/event-stream")

    with (
        listening(server.app) as api,
        listening(with_page(page(Client(url=api), every=0.5), path="")) as own,
        opened(chromium, own, []) as tab,
    ):
        tab.route("**/queue/data*", data)
        assert listed(tab, "#model") == ["one", "two"]
        closes.set()
        # none is open before one of them is closed; the browser calls `data` while it is waited for
        until(lambda: tab.wait_for_timeout(50) or closed)
        server.names.append("three")
        ask(tab, "Where is it?")
        until(lambda: bool(server.seen))
        assert listed(tab, "#model") == ["one", "two"]
        assert BOX not in tab.inner_text("#answer")
        closes.clear()
        tab.wait_for_selector(f"#answer >> text={BOX}")
        until(lambda: listed(tab, "#model") == ["one", "two", "three"])


def test_the_page_on_a_models_own_server(chromium: Any, tmp_path: Path) -> None:
    """Answers of the engine, with its keys, behind the page's password."""
    model, processor = elastic()
    service = Service(
        model,
        processor,
        name="tiny",
        engine=EngineSpec(kv_tokens=512),
        spec=ServeSpec(keys=("theirs", "the-pages")),
    )
    models = [
        Model(name=row["id"], budgets=tuple(row["visual_token_budgets"])) for row in cards(service)
    ]
    client = LateClient(url="", key="the-pages")
    blocks = page(client, models=models)
    api = create_app(Models([service]))
    front = with_page(blocks, api=api, password=("me", "secret"))
    with listening(front) as address, opened(chromium, f"{address}/ui", []) as tab:
        client.address.append(address)
        tab.fill("input[type=text], label:has-text('username') input, textarea", "me")
        tab.fill("input[type=password]", "secret")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#question textarea")
        file = tmp_path / "b.png"
        picture(2).save(file)
        ask(tab, "What is this?", file)
        tab.wait_for_selector("#answer >> text=16 visual tokens")
        slider = tab.locator("#budget input[type=number]")
        slider.fill("2")
        slider.press("Enter")
        tab.wait_for_selector("#budget >> text=Visual tokens per view: 4")
        tab.click("#again")
        tab.wait_for_selector("#answer >> text=4 visual tokens")


class LateClient(Client):
    """A client whose server's address is known only once it listens."""

    address: list[str] = []

    def stream(self, body: dict[str, Any]) -> Any:
        return Client(url=self.address[-1], key=self.key).stream(body | {"max_tokens": 6})
