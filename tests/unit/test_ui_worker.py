"""LLaVA's protocol as the web chat speaks it, against a scripted controller and worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from loopback_app import free_port, listening
from retinue.core.errors import EnvError
from retinue.demo.ui.client import Client, Model, Piece, RefusedError
from retinue.demo.ui.controller import ControllerClient, server_at
from retinue.demo.ui.roster import NOBODY, Roster
from retinue.demo.ui.worker import Worker, messages_of, prompt_of, template_of
from retinue.serve.llava.controller import Controller, create_controller
from retinue.text.template import resolve

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions."
)


def asked(name: str, *content: Any, **more: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}
    return {"model": name, "messages": [turn], "max_tokens": 9, "temperature": 0.0, **more}


class Original:
    """A worker that knows only LLaVA's routes: it keeps what it was sent and says its script."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.says = ["", " a", " a cat", " a cat</s>", " a cat"]
        self.code = 0
        self.app = FastAPI()

        @self.app.post("/worker_get_status")
        async def status() -> Any:
            return {"model_names": ["llava-v1.5-7b-m3"], "speed": 1, "queue_length": 0}

        @self.app.post("/worker_generate_stream")
        async def answer(request: Request) -> Any:
            body = await request.json()
            self.seen.append(body | {"agent": request.headers["user-agent"]})
            return StreamingResponse(self.messages(body["prompt"]))

    def messages(self, prompt: str) -> Iterator[bytes]:
        for text in self.says:
            row = {"text": prompt + text, "error_code": self.code}
            data = json.dumps(row).encode() + b"\0"
            yield data[:9]  # a message arrives in pieces
            yield data[9:]


@pytest.fixture
def original() -> Iterator[tuple[Original, str]]:
    found = Original()
    with listening(found.app) as address:
        yield found, address


def test_a_worker_is_asked_in_its_own_words(original: Any) -> None:
    worker, address = original
    client = Worker(address=address)
    pieces = list(client.stream(asked("llava-v1.5-7b", PICTURE, top_k=5, seed=1)))
    assert [piece.text for piece in pieces[:-1]] == ["", "a", "a cat", "a cat</s>", "a cat"]
    assert all(piece.anew for piece in pieces[:-1])
    assert pieces[-1] == Piece(note="LLaVA's worker does not take seed, top_k")
    assert worker.seen == [
        {
            "model": "llava-v1.5-7b",
            "prompt": f"{HUMAN} USER: <image>\nWhat? ASSISTANT:",
            "temperature": 0.0,
            "top_p": 1.0,
            "max_new_tokens": 9,
            "stop": "</s>",
            "images": ["QUJD"],
            "agent": "LLaVA Client",
        }
    ]


def test_scales_of_nested_models(original: Any) -> None:
    worker, address = original
    client = Worker(address=address)
    for budget in ({}, {"visual_tokens": 36}):
        list(client.stream(asked("llava-v1.5-7b-m3", PICTURE, **budget)))
    assert [body["matryoshka_vis_token_scale"] for body in worker.seen] == [576, 36]


def test_errors_of_a_worker(original: Any) -> None:
    worker, address = original
    worker.code = 1
    with pytest.raises(RefusedError, match=r"\(code 1\)"):
        list(Worker(address=address).stream(asked("m")))
    with pytest.raises(RefusedError, match="does not answer"):
        list(Worker(address=f"http://127.0.0.1:{free_port()}").stream(asked("m")))
    with pytest.raises(RefusedError, match="404"):
        list(Worker(address=f"{address}/nowhere").stream(asked("m")))


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llava-llama-2-13b-chat", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-hermes-mistral-7b", "chatml_direct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.5-7b-m3", "llava_v1"),
        ("LLaVA-7b-v1-pretrain-plain", "v1_mmtag"),
        ("llava-v1-finetune-plain", "llava_v1"),
        ("llava-mpt-7b", "mpt"),
        ("llava-7b-v0-mmtag", "v0_mmtag"),
        ("llava-next-vicuna-7b-m3", "llava_v0"),
        ("mpt-7b", "mpt"),
        ("llama-2-7b", "llama_2"),
        ("vicuna-7b", "vicuna_v1"),
    ],
)
def test_the_conversation_of_a_name(name: str, template: str) -> None:
    assert template_of(name).name == template


def test_prompts() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [PICTURE, PICTURE, {"type": "text", "text": "Hi <image>"}]},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "More?"},
    ]
    prompt, pictures = prompt_of(turns, resolve("llava_v1"))
    assert prompt == (
        "Be brief. USER: <image>\n<image>\nHi ASSISTANT: Yes</s>USER: More? ASSISTANT:"
    )
    assert pictures == ["QUJD", "QUJD"]
    marked, _ = prompt_of(turns[1:], resolve("v0_mmtag"))
    assert "###Human: <Image><image><image></Image>###Assistant: Received.###Human: Hi" in marked
    with pytest.raises(RefusedError, match="caption prompt"):
        prompt_of(turns[1:], resolve("plain"))


def test_messages_are_whole_however_they_were_cut() -> None:
    data = b'{"text": "\xc3\xa9"}\0{"text": "b"}\0'
    for size in (1, 3, len(data)):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        assert list(messages_of(pieces)) == [{"text": "é"}, {"text": "b"}]
    with pytest.raises(ValueError, match="Expecting"):
        list(messages_of([b"no json\0"]))


def test_a_controller_names_models_and_workers(original: Any) -> None:
    worker, address = original
    controller = Controller()
    with listening(create_controller(controller)) as front:
        client = server_at(front)
        assert isinstance(client, ControllerClient)
        assert client.models() == []
        controller.register(address, False, None)
        name = "llava-v1.5-7b-m3"
        assert client.models() == [Model(name=name, budgets=(1, 9, 36, 144, 576))]
        queue = controller.workers[address].queue
        client.models()
        assert controller.workers[address].queue == queue  # looking again takes no place in it
        assert [piece.text for piece in client.stream(asked(name))][-1] == "a cat"
        with pytest.raises(RefusedError, match="no worker has 'other'"):
            list(client.stream(asked("other")))
    with pytest.raises(EnvError, match="no controller"):
        ControllerClient(url=front).models()
    with pytest.raises(RefusedError, match="the controller does not answer"):
        list(client.stream(asked(name)))
    assert isinstance(server_at(f"{front}/v1"), Client)
    assert worker.seen[0]["model"] == name


class Changing:
    """A server whose models a test changes; None: it does not answer."""

    def __init__(self, *names: str) -> None:
        self.names: tuple[str, ...] | None = names
        self.looks = 0

    def models(self) -> list[Model]:
        self.looks += 1
        if self.names is None:
            raise EnvError("no server")
        return [Model(name=name) for name in self.names]

    def stream(self, body: dict[str, Any]) -> Iterator[Piece]:
        yield Piece(text=body["model"])


def test_choices_that_exist_stay_and_others_fall_back() -> None:
    server = Changing("a", "b")
    roster = Roster(server=server, models=server.models(), spacing=0)
    assert all("choices" not in update for update in roster.changed("b", NOBODY, ["a", "b"])[:2])
    server.names = ("a", "b", "c")
    model, other, names = roster.changed("b", "a", ["a", "b"])
    assert (model["choices"], other["choices"]) == (["a", "b", "c"], [NOBODY, "a", "b", "c"])
    assert names == ["a", "b", "c"]
    assert "value" not in model
    assert "value" not in other
    server.names = ("c",)
    # gradio's form of a note where there is no page
    with pytest.warns(UserWarning, match="is gone") as notes:
        model, other, names = roster.changed("b", "a", names)
    said = [str(note.message) for note in notes]
    assert said == ["b is gone; c answers from now on.", "a is gone."]
    assert (model["value"], other["value"]) == ("c", NOBODY)
    server.names = None  # a server that is silent for a while keeps its models
    assert roster.look() == ["c"]
    server.names = ()
    with pytest.warns(UserWarning, match=r"c is gone\."):
        assert roster.changed("c", NOBODY, ["c"])[0]["value"] is None
    assert roster.opened(None, NOBODY, ["c"])[0]["value"] is None


def test_visitors_share_a_look() -> None:
    server = Changing("a")
    roster = Roster(server=server, models=[], spacing=60)
    assert [roster.look() for _ in range(5)] == [["a"]] * 5
    assert server.looks == 1
