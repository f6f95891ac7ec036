"""The server over loopback, asked by the official `openai` client and by bare HTTP."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
import uvicorn

from retinue.decode.prompt import user_message
from retinue.decode.sampling import SamplingParams
from retinue.hub.elastic import make_elastic
from retinue.serve.app import create_app
from retinue.serve.engine import EngineSpec
from retinue.serve.messages import PictureLimits
from retinue.serve.service import ServeSpec, Service
from retinue.types import Sample
from tiny import picture, tiny_model
from tiny_serve import reference

KEY = "sk-test"
GREEDY = {"temperature": 0, "max_tokens": 8}


@contextlib.contextmanager
def running(service):
    """The service on a free port; its base address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(
        create_app(service), host="127.0.0.1", port=port, log_level="warning", lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def service():
    model, processor = tiny_model(seed=5)
    make_elastic(model, processor, scales=[1, 4, 16])
    spec = ServeSpec(
        requests=8,
        keys=(KEY,),
        body_bytes=200_000,
        choices=4,
        pictures=PictureLimits(count=2, bytes=50_000, pixels=10_000),
    )
    return Service(model, processor, name="tiny", engine=EngineSpec(block=4), spec=spec)


@pytest.fixture(scope="module")
def address(service):
    with running(service) as address:
        yield address
    service.engine.check_integrity()


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_left(service):
    yield
    end = time.monotonic() + 10
    while service.engine.busy or service.under_way:
        assert time.monotonic() < end, "a request is still there"
        time.sleep(0.01)
    service.engine.check_integrity()


def uri(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def turn(text, *images):
    parts = [{"type": "image_url", "image_url": {"url": uri(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def expected(service, text, *images, budget=None, **params):
    sample = Sample(id="a", messages=(user_message(text, images),))
    model = service.engine.model
    params = SamplingParams(max_new_tokens=8, **params)
    return reference(model, service.processor, sample, params=params, budget=budget)


def post(address, path, body, *, key=KEY):
    """(status, parsed body) by bare HTTP."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data)
    request.add_header("content-type", "application/json")
    request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def eventually(address, wanted):
    """The reply to a harmless call once it has this status."""
    end = time.monotonic() + 20
    while True:
        status, reply = post(address, "/tokenize", {"prompt": "the " * 100})
        if status == wanted:
            return reply
        assert time.monotonic() < end, (status, reply)
        time.sleep(0.05)


def test_chat_with_pictures_is_the_decode_loop(client, service):
    for n, budget in enumerate((None, 1, 4, 16)):
        images = [picture(k) for k in range(n % 3)]
        reply = client.chat.completions.create(
            model="tiny",
            messages=turn("what colour?", *images),
            extra_body={"visual_tokens": budget},
            **GREEDY,
        )
        found = expected(service, "what colour?", *images, budget=budget)
        assert reply.choices[0].message.content == found.text
        assert reply.choices[0].finish_reason == found.finish
        assert reply.usage.completion_tokens == len(found.tokens)
        assert reply.visual_tokens == ((budget or 16) if images else None)
        assert reply.usage.visual_tokens == (budget or 16) * len(images)


def test_stream_has_the_same_text_usage_and_logprobs(client, service):
    asked = {"model": "tiny", "messages": turn("how many?", picture(1)), **GREEDY}
    asked |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    pieces = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert text == whole.choices[0].message.content
    usage = pieces[-1].usage
    assert pieces[-1].choices == []
    assert usage.total_tokens == whole.usage.total_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0, "the second call finds the first's blocks"
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == (
        whole.choices[0].finish_reason
    )
    marks = [
        m
        for p in pieces
        if p.choices and p.choices[0].logprobs
        for m in p.choices[0].logprobs.content
    ]
    assert [m.token for m in marks] == [m.token for m in whole.choices[0].logprobs.content]
    found = expected(service, "how many?", picture(1))
    assert [m.logprob for m in marks] == pytest.approx(found.logprobs[: len(marks)], abs=1e-4)
    assert len(marks) >= len(found.tokens) - 1
    assert all(len(m.top_logprobs) == 2 for m in marks)


def test_stop_strings_stop(client, service):
    free = expected(service, "what?", ignore_eos=True)
    stop = free.text[2:4]
    reply = client.chat.completions.create(
        model="tiny", messages=turn("what?"), stop=stop, extra_body={"ignore_eos": True}, **GREEDY
    )
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].message.content == free.text[: free.text.index(stop)].strip()
    assert reply.usage.completion_tokens < 8


def test_choices_and_seeds(client):
    def texts(**more):
        reply = client.chat.completions.create(
            model="tiny",
            messages=turn("what?", picture(2)),
            n=3,
            temperature=1.5,
            max_completion_tokens=12,
            extra_body={"ignore_eos": True},
            **more,
        )
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage.completion_tokens == 36
        return [choice.message.content for choice in reply.choices]

    first = texts(seed=7)
    assert len(set(first)) == 3
    assert texts(seed=7) == first
    assert texts(seed=8) != first
    assert texts() != texts()


def test_completions_of_texts_and_ids(client, service):
    prompt = "USER: what colour? ASSISTANT:"
    reply = client.completions.create(model="tiny", prompt=[prompt, "the"], logprobs=1, **GREEDY)
    assert len(reply.choices) == 2
    ids = service.processor.tokenizer.call(prompt)
    again = client.completions.create(model="tiny", prompt=ids, **GREEDY)
    assert again.choices[0].text == reply.choices[0].text
    chat = expected(service, "what colour?")
    assert reply.choices[0].text.strip() == chat.text
    marks = reply.choices[0].logprobs
    assert len(marks.tokens) == len(marks.token_logprobs) == len(marks.top_logprobs)
    assert marks.token_logprobs == pytest.approx(chat.logprobs[: len(marks.tokens)], abs=1e-4)
    assert client.completions.create(model="tiny", prompt="the").usage.completion_tokens <= 16
    pieces = client.completions.create(model="tiny", prompt=ids, stream=True, **GREEDY)
    assert "".join(p.choices[0].text for p in pieces) == again.choices[0].text


def test_models_tokens_health_and_metrics(client, address, service):
    (card,) = client.models.list().data
    assert (card.id, card.visual_token_budgets) == ("tiny", [1, 4, 16])
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    status, found = post(address, "/tokenize", {"prompt": "what colour"})
    assert (status, found["tokens"]) == (200, service.processor.tokenizer.call("what colour"))
    _, found = post(
        address, "/tokenize", {"messages": turn("what?", picture()), "visual_tokens": 4}
    )
    assert found["tokens"].count(service.processor.image_id) == 4
    _, back = post(
        address, "/detokenize", {"tokens": service.processor.tokenizer.encode("the red")}
    )
    assert back == {"prompt": "the red"}
    with urllib.request.urlopen(f"{address}/health") as reply:
        assert json.loads(reply.read()) == {"status": "ok"}
    request = urllib.request.Request(
        f"{address}/metrics", headers={"authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request) as reply:
        page = reply.read().decode()
    rows = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(rows['retinue_replies_total{route="/tokenize",status="200"}']) >= 2
    assert float(rows['retinue_blocks{model="tiny"}']) == service.engine.blocks.usable
    assert 'retinue_first_token_seconds_bucket{model="tiny",le="+Inf"}' in rows


BAD = [
    ({"messages": []}, 400, "messages"),
    ({"messages": "hello"}, 400, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        400,
        "messages[0].content[0]",
    ),
    ({"model": "other"}, 404, "model"),
    ({"temperature": -1}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"n": 5}, 400, "n"),
    ({"tools": [{}]}, 400, "tools"),
    ({"response_format": {"type": "xml"}}, 400, "response_format"),
    ({"presence_penalty": 1}, 400, "presence_penalty"),
    ({"temprature": 1}, 400, "temprature"),
    ({"visual_tokens": 5}, 400, None),
    ({"top_logprobs": 2}, 400, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
]


@pytest.mark.parametrize(("change", "status", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_fields_are_named(address, change, status, param):
    body = {"model": "tiny", "messages": turn("what?", picture()), **change}
    found, reply = post(address, "/v1/chat/completions", body)
    assert (found, reply["error"]["param"]) == (status, param), reply
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert reply["error"]["message"]


def test_pictures_that_are_refused(address):
    def asked(url, count=1):
        part = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [part] * count}]
        return post(address, "/v1/chat/completions", {"messages": messages, **GREEDY})

    for url in (
        "http://127.0.0.1:1/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png;base64,????",
        "data:image/png;base64,aGVsbG8=",
        uri(picture())[:-40],
    ):
        status, reply = asked(url)
        assert (status, reply["error"]["code"] in ("invalid_image", "invalid_request")) == (
            400,
            True,
        )
        assert "root:" not in json.dumps(reply)
    assert asked(uri(picture(width=101, height=100)))[0] == 413
    assert asked(uri(picture()), count=3)[1]["error"]["code"] == "too_many_images"
    assert asked("data:," + "x" * 60_000)[0] == 413


def test_keys_and_sizes_are_checked_first(address):
    status, reply = post(address, "/v1/chat/completions", {}, key="sk-wrong")
    assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
    status, reply = post(address, "/v1/chat/completions", b"x" * 200_001)
    assert (status, reply["error"]["code"]) == (413, "request_too_large")
    assert post(address, "/v1/chat/completions", b"{")[0] == 400
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /tokenize HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-length: 200000\r\n\r\n"
    with contextlib.ExitStack() as stack:  # bodies that never end
        for _ in range(16):
            link = stack.enter_context(socket.create_connection((host, int(port))))
            link.sendall(head.encode() + b"x" * 199_999)
        assert eventually(address, 429)["error"]["code"] == "queue_full"
    eventually(address, 200)
    assert post(address, "/nowhere", {})[0] == 404


def test_a_full_queue_is_429_and_everyone_accepted_is_answered(address):
    statuses = []
    body = {"prompt": "the", "n": 2, "max_tokens": 200, "ignore_eos": True, "seed": 1}

    def one():
        statuses.append(post(address, "/v1/completions", body)[0])

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_free_what_they_held(address, service, stream):
    before = service.metrics.cancelled
    host, port = address.removeprefix("http://").split(":")
    body = {"prompt": "the", "max_tokens": 12_000, "ignore_eos": True, "stream": stream}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as link:
        link.sendall(head.encode() + data)
        while not service.engine.new_tokens or not service.engine.busy:
            time.sleep(0.01)
    end = time.monotonic() + 10
    while service.metrics.cancelled == before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_reply_that_takes_too_long_is_cancelled():
    model, processor = tiny_model(seed=5)
    slow = Service(model, processor, name="slow", spec=ServeSpec(timeout_s=0.3))
    with running(slow) as address:
        body = {"prompt": "the", "max_tokens": 15_000, "ignore_eos": True}
        status, reply = post(address, "/v1/completions", body)
        assert (status, reply["error"]["code"]) == (503, "timeout")
        assert post(address, "/v1/completions", {"prompt": "the", "max_tokens": 2})[0] == 200
    assert not slow.under_way


def test_a_broken_step_fails_its_requests_and_no_others(monkeypatch):
    model, processor = tiny_model(seed=5)
    service = Service(model, processor, name="tiny")
    whole, left = service.engine.step, [1]

    def step():
        if left:
            left.pop()
            raise RuntimeError("out of luck")
        return whole()

    monkeypatch.setattr(service.engine, "step", step)
    with running(service) as address:
        status, reply = post(address, "/v1/completions", {"prompt": "the", "max_tokens": 2})
        assert (status, reply["error"]["type"]) == (500, "server_error")
        assert "luck" not in json.dumps(reply)
        assert service.background.sound
        assert post(address, "/v1/completions", {"prompt": "the", "max_tokens": 2})[0] == 200


def test_an_engine_that_cannot_be_trusted_says_so(monkeypatch):
    model, processor = tiny_model(seed=5)
    service = Service(model, processor, name="tiny")

    def step():
        service.engine.blocks.idle.pop()  # a block is lost
        raise RuntimeError("out of luck")

    monkeypatch.setattr(service.engine, "step", step)
    with running(service) as address:
        body = {"prompt": "the", "max_tokens": 2}
        assert post(address, "/v1/completions", body)[0] == 500
        status, reply = post(address, "/v1/completions", body)
        assert (status, reply["error"]["code"]) == (503, "engine_failed")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}/health")
        with caught.value as error:
            assert error.code == 503
