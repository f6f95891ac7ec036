"""Our API in front of other servers: health, retries, streams, LLaVA's protocol; one is killed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import openai
import pytest

from loopback_app import free_port, listening
from retinue.core.errors import RequestError
from retinue.hub.load import load
from retinue.hub.save import save
from retinue.serve.app import create_app
from retinue.serve.front.app import create_front
from retinue.serve.front.backends import Backends, FrontSpec
from retinue.serve.front.prompts import conversation, messages_of, rendered
from retinue.serve.front.relay import Relay, add_relay
from retinue.serve.llava import BUSY
from retinue.serve.llava.controller import Controller, create_controller
from retinue.serve.llava.link import post, stream
from retinue.serve.service import ServeSpec, Service
from retinue.text.template import resolve
from serve_client import GREEDY, call, turn, until, uri
from tiny import picture, tiny_model

FAST = {"every_s": 0.2, "answer_s": 2.0, "connect_s": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("behind") / "tiny"
    save(*tiny_model(seed=5), place)
    return place


def started(folder, *words):
    """A server process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "retinue", "serve", *map(str, (folder, *words)), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RETINUE_API_KEYS": ""},
    )
    line = process.stderr.readline()
    return process, re.findall(r"(http://127\.0\.0\.1:\d+)/v1", line)[0]


def ended(process):
    process.kill()
    process.wait()
    process.stderr.close()


def in_front(*urls, **fields):
    return Backends(FrontSpec(urls=urls, **{**FAST, **fields}))


def test_two_servers_behind_one_of_which_one_is_killed(folder):
    with listening_service(folder) as plain:
        wanted = call(plain, "/v1/chat/completions", {"messages": turn("what?"), **GREEDY})[1]
        wanted = wanted["choices"][0]["message"]["content"]
    processes = [started(folder) for _ in range(2)]
    try:
        backends = in_front(*(address for _, address in processes))
        with listening(create_front(backends)) as front:
            client = openai.OpenAI(base_url=f"{front}/v1", api_key="x", max_retries=0)
            assert [card.id for card in client.models.list().data] == ["tiny"]

            def ask(found, **more):
                reply = client.chat.completions.create(
                    model="tiny", messages=turn("what?"), **{**GREEDY, **more}
                )
                found.append(reply.choices[0].message.content)

            found = []
            threads = [threading.Thread(target=ask, args=(found,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [wanted] * 8
            assert all(one.calls >= 2 for one in backends.all), "both were asked"

            # a long answer of each server; then the first server dies in the middle
            answers, begun = {}, []

            def long(number):
                pieces = client.completions.create(
                    model="tiny",
                    prompt="the",
                    max_tokens=700,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                begun.append(next(iter(pieces)))
                try:
                    ends = [piece.choices[0].finish_reason for piece in pieces]
                    answers[number] = ends[-1]
                except openai.APIError as error:
                    answers[number] = error.code

            def whole(number):
                reply = client.completions.create(
                    model="tiny", prompt="the", max_tokens=200, extra_body={"ignore_eos": True}
                )
                answers[number] = reply.usage.completion_tokens

            threads = [threading.Thread(target=long, args=(n,)) for n in range(4)]
            threads += [threading.Thread(target=whole, args=(n,)) for n in range(4, 8)]
            for thread in threads[:4]:
                thread.start()
            until(lambda: len(begun) == 4)
            for thread in threads[4:]:
                thread.start()
            until(lambda: all(one.under_way == 4 for one in backends.all))
            processes[0][0].send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
            streams = [answers[n] for n in range(4)]
            assert set(streams) == {"length", "broken_off"}, "a stream cannot be begun anew"
            assert [answers[n] for n in range(4, 8)] == [200] * 4, "whole answers are tried again"
            found.clear()
            for _ in range(3):
                ask(found)
            assert found == [wanted] * 3
            until(lambda: call(front, "/health")[1]["backends"][processes[0][1]] == "down")
            assert call(front, "/health")[0] == 200
            _, page = call(front, "/metrics")
            assert f'retinue_backend_up{{backend="{processes[0][1]}"}} 0' in page
            assert not any(one.under_way for one in backends.all)
            client.close()
    finally:
        for process, _ in processes:
            ended(process)


@contextlib.contextmanager
def listening_service(folder):
    with listening(create_app(Service(*load(folder), name="tiny"))) as address:
        yield address


def test_errors_keys_and_limits_in_front():
    service = Service(*tiny_model(seed=5), name="tiny", spec=ServeSpec(keys=("inner",)))
    spec = ServeSpec(keys=("outer",), body_bytes=5000)
    with listening(create_app(service)) as behind:
        backends = in_front(behind, f"http://127.0.0.1:{free_port()}", key="inner")
        with listening(create_front(backends, spec=spec)) as front:
            body = {"prompt": "the", "max_tokens": 2}
            assert call(front, "/v1/completions", body, key="inner")[0] == 401
            assert call(front, "/v1/completions", body, key="outer")[0] == 200
            status, reply = call(front, "/v1/completions", {**body, "n": 99}, key="outer")
            assert (status, reply["error"]["param"]) == (400, "n"), "the server's own words"
            big = {"prompt": "x" * 6000}
            assert call(front, "/v1/completions", big, key="outer")[0] == 413
            status, reply = call(front, "/v1/completions", {**body, "model": "m"}, key="outer")
            assert (status, reply["error"]["code"]) == (404, "model_not_found")
            assert call(front, "/v1/completions", [1], key="outer")[0] == 400
            assert call(front, "/v1/models/tiny", key="outer")[1]["id"] == "tiny"
            assert call(front, "/v1/models/other", key="outer")[0] == 404
            assert call(front, "/tokenize", {"prompt": "the"}, key="outer")[0] == 200


def test_nobody_behind_is_503_until_somebody_comes():
    port = free_port()
    backends = in_front(f"http://127.0.0.1:{port}/v1/")
    with listening(create_front(backends)) as front:
        body = {"prompt": "the", "max_tokens": 2}
        status, reply = call(front, "/v1/completions", body)
        assert (status, reply["error"]["code"]) == (503, "no_backend")
        assert call(front, "/health")[0] == 503
        service = Service(*tiny_model(seed=5), name="late")
        with listening(create_app(service), port=port):
            until(lambda: call(front, "/health")[0] == 200)
            assert call(front, "/v1/completions", {**body, "model": "late"})[0] == 200


def test_a_client_that_leaves_ends_the_call_behind():
    service = Service(*tiny_model(seed=5), name="tiny")
    with listening(create_app(service)) as behind:
        backends = in_front(behind)
        with listening(create_front(backends)) as front:
            host, port = front.removeprefix("http://").split(":")
            for streams in (True, False):
                until(lambda: not service.engine.busy)
                before = service.metrics.cancelled
                body = {"prompt": "the", "max_tokens": 15_000, "ignore_eos": True}
                data = json.dumps({**body, "stream": streams}).encode()
                head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                with socket.create_connection((host, int(port))) as link:
                    link.sendall(head.encode() + data)
                    until(lambda: service.engine.busy)
                until(lambda before=before: service.metrics.cancelled > before)
                until(lambda: not any(one.under_way for one in backends.all))


TURNS = [
    ("system", "Be short."),
    ("user", "<image>\nwhat?"),
    ("assistant", "red"),
    ("user", "why?"),
]


@pytest.mark.parametrize(
    "name", ["vicuna_v1", "llava_v1", "llava_v0", "chatml_direct", "mistral_instruct"]
)
def test_conversations_come_back_out_of_prompts(name):
    template = resolve(name)
    for turns in (TURNS, TURNS[1:], TURNS[1:2]):
        assert conversation(rendered(turns, template), template) == turns
    with pytest.raises(RequestError, match="is none of the template"):
        conversation("something else", template)


def test_pictures_take_the_places_of_their_marks():
    found = messages_of(TURNS, ["AAAA"])
    assert found[1]["content"][0]["image_url"]["url"] == "data:image/png;base64,AAAA"
    assert found[1]["content"][1] == {"type": "text", "text": "what?"}
    assert found[3] == {"role": "user", "content": "why?"}
    for wrong in ([], ["AAAA", "BBBB"]):
        with pytest.raises(RequestError):
            messages_of(TURNS, wrong)


def test_llava_clients_reach_servers_of_the_openai_api():
    """Controller, our worker in front, an OpenAI-like server behind: LLaVA's own messages."""
    service = Service(*tiny_model(seed=5), name="tiny")
    controller = Controller(expiry=1.0)
    with listening(create_app(service)) as behind, listening(create_controller(controller)) as top:
        backends, port = in_front(behind), free_port()
        app = create_front(backends)
        place = f"http://127.0.0.1:{port}"
        template = resolve({"name": "vicuna_v1", "system": ""})
        add_relay(
            app,
            Relay(backends=backends, template=template, address=place, controller=top, beat=0.1),
        )
        with listening(app, port=port):
            until(lambda: controller.models == ["tiny"])
            image = picture(1)
            body = {
                "model": "tiny",
                "prompt": "USER: <image>\nwhat? ASSISTANT:",
                "images": [uri(image).partition(",")[2]],
                "temperature": 0,
                "max_new_tokens": 8,
                "stop": "</s>",
            }
            data = b"".join(stream(top, "/worker_generate_stream", body))
            said = [json.loads(part) for part in data.split(b"\0")[:-1]]
            reply = call(
                behind, "/v1/chat/completions", {"messages": turn("what?", image), **GREEDY}
            )
            text = reply[1]["choices"][0]["message"]["content"]
            assert said[-1] == {"text": body["prompt"] + text, "error_code": 0}
            assert post(place, "/worker_get_status")["model_names"] == ["tiny"]
            for wrong in ({"prompt": "no template"}, {"images": []}, {"stop": None}):
                data = b"".join(stream(top, "/worker_generate_stream", {**body, **wrong}))
                assert json.loads(data.split(b"\0")[0]) == {"text": BUSY, "error_code": 1}
        until(lambda: controller.models == [])
