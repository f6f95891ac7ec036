"""LLaVA's controller and workers over loopback: workers come, answer side by side, and go."""

import json
import time

import pytest

from loopback_app import free_port, listening
from retinue.serve.llava import BUSY
from retinue.serve.llava.controller import Controller, create_controller
from retinue.serve.llava.link import post, stream
from retinue.serve.llava.words import Words
from tiny_workers import worker

EXPIRY = 0.4


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def answer(front, model):
    body = {"model": model, "prompt": "USER: what? ASSISTANT:", "temperature": 0, "stop": "</s>"}
    body |= {"max_new_tokens": 6}
    data = b"".join(stream(front, "/worker_generate_stream", body))
    return [json.loads(part) for part in data.split(b"\0")[:-1]]


def test_workers_come_and_go_while_the_controller_runs():
    controller = Controller(expiry=EXPIRY)
    with listening(create_controller(controller)) as front, worker("one", 5, front) as first:
        until(lambda: controller.models == ["one"])
        with worker("two", 6, front):
            until(lambda: controller.models == ["one", "two"])
            assert post(front, "/list_models") == {"models": ["one", "two"]}
            texts = [answer(front, name)[-1]["text"] for name in ("one", "two")]
            assert len(set(texts)) == 2
            assert all(text.startswith("USER: what? ASSISTANT:") for text in texts)
            status = post(front, "/worker_get_status")
            assert status["model_names"] == ["one", "two"]
            assert status["speed"] == 2
        # the second has gone without a word: its heartbeats stop
        until(lambda: controller.models == ["one"])
        assert [m["error_code"] for m in answer(front, "two")] == [2, 3]
        assert answer(front, "one")[-1]["text"] == texts[0]
        # a controller that forgot a worker is told again
        controller.workers.clear()
        until(lambda: controller.models == ["one"])
        assert first.engine.new_tokens > 0


def test_a_worker_that_is_registered_but_dead():
    controller = Controller()
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    controller.register(f"http://127.0.0.1:{free_port()}", True, status)
    with listening(create_controller(controller)) as front:
        assert answer(front, "m") == [{"text": BUSY, "error_code": 3}]
        post(front, "/refresh_all_workers")
        assert controller.models == []


def test_dispatch():
    controller = Controller()
    for name, speed, queue in (("a", 1, 2), ("b", 2, 3), ("c", 1, 9)):
        found = {"model_names": ["m"], "speed": speed, "queue_length": queue}
        controller.register(f"http://{name}", False, found)
    chosen = [controller.address("m").removeprefix("http://") for _ in range(4)]
    assert chosen == ["b", "a", "b", "b"]  # 3/2, then 2 = 4/2 with the first taken, ...
    controller.dispatch = "lottery"
    assert {controller.address("m") for _ in range(200)} == {"http://a", "http://b", "http://c"}
    assert controller.address("other") == ""


@pytest.mark.parametrize("text", ["one two\nthree 早上 four", "no-blank", " lead\n\n"])
def test_words_are_the_streamer_s(text):
    class Letters:
        def decode(self, ids, **more):
            return "".join(map(chr, ids))

    words = Words(Letters())
    pieces = [words.push(ord(letter)) for letter in text]
    assert "".join(pieces) + words.finish() == text
    for piece in pieces:
        assert not piece or piece[-1] in " \n早上"
