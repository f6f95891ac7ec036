"""Text to image: the model's words go to a pipeline; a server of the test's own answers."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from retinue.cli.main import run
from retinue.core.errors import ConfigError, EnvError, MediaError
from retinue.demo import t2i
from retinue.demo.t2i import painter
from retinue.hub.save import save
from tiny import tiny_model


def png(colour: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server() -> Iterator[Any]:
    """A stub of a text-to-image server: every path answers in another of the forms in use."""
    heard: list[dict[str, Any]] = []
    coded = base64.b64encode(png()).decode()

    class Stub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            address = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            answers: dict[str, Any] = {
                "/v1/images/generations": {"data": [{"b64_json": coded}]},
                "/link": {"data": [{"url": f"{address}/made.png"}]},
                "/sdapi": {"images": [coded]},
                "/uri": {"images": [f"data:image/png;base64,{coded}"]},
                "/empty": {"data": []},
                "/file": {"data": [{"url": "file:///etc/hostname"}]},
                "/text": {"images": [base64.b64encode(b"no picture").decode()]},
            }
            if self.path == "/raw":
                self.reply(png(), kind="image/png")
            elif self.path in answers:
                self.reply(json.dumps(answers[self.path]).encode())
            else:
                self.reply(b"out of paint", status=503)

        def do_GET(self) -> None:
            self.reply(png(), kind="image/png")

        def reply(self, data: bytes, *, kind: str = "application/json", status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}", heard=heard)
        finally:
            http.shutdown()
            thread.join(timeout=10)


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/images/generations", "/raw", "/link", "/sdapi", "/uri"]
)
def test_every_form_of_answer_is_a_picture(path: str, server: Any) -> None:
    made = painter(server.url + path)("a harbour")
    assert (made.size, made.getpixel((3, 3))) == ((12, 8), (0, 128, 128))
    assert server.heard[0]["prompt"] == "a harbour"
    assert server.heard[0]["n"] == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [("/empty", "no picture"), ("/file", "no picture"), ("/gone", "answered 503.*out of paint")],
)
def test_a_server_without_a_picture_is_named(path: str, said: str, server: Any) -> None:
    with pytest.raises(EnvError, match=said):
        painter(server.url + path)("a harbour")


def test_what_is_no_picture_is_refused(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MediaError):
        painter(server.url + "/text")("a harbour")
    monkeypatch.setattr(t2i, "LARGEST", 10)
    with pytest.raises(EnvError, match="more than"):
        painter(server.url + "/raw")("a harbour")


def test_an_address_that_nobody_listens_at_is_named(free_port: int) -> None:
    with pytest.raises(EnvError, match="cannot be reached"):
        painter(f"http://127.0.0.1:{free_port}")("a harbour")


def test_the_key_comes_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(t2i.KEY, "secret")
    painter(server.url + "/raw")("x")
    assert server.heard[0]["key"] == "Bearer secret"


PIPELINE = """
from types import SimpleNamespace
from PIL import Image

def square(prompt):
    return Image.new("RGB", (len(prompt), 4))

def diffusers_like(prompt):
    return SimpleNamespace(images=[square(prompt)])

def silent(prompt):
    return None

number = 3
"""


def test_functions_of_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pipeline_of_test.py").write_text(PIPELINE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert painter("my_pipeline_of_test:square")("12345").size == (5, 4)
    assert painter("my_pipeline_of_test:diffusers_like")("123").size == (3, 4)
    with pytest.raises(EnvError, match="NoneType"):
        painter("my_pipeline_of_test:silent")("123")
    with pytest.raises(ConfigError, match="cannot be called"):
        painter("my_pipeline_of_test:number")
    with pytest.raises(ConfigError, match="cannot be imported"):
        painter("my_pipeline_of_test:round")
    sys.modules.pop("my_pipeline_of_test")


def test_the_model_writes_the_prompt(server: Any, tmp_path: Path, capsys: Any) -> None:
    """The verb: what the model says is what the server is asked, its picture is in the file."""
    model, processor = tiny_model(seed=5)
    save(model, processor, tmp_path / "model")
    target = tmp_path / "new.png"
    words = ["chat", str(tmp_path / "model"), "--ask", "a prompt for a boat", "--device", "cpu"]
    words += ["--max-new-tokens", "6", "--t2i", f"{server.url}/v1", "--draw", str(target)]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert server.heard[0]["prompt"] == said.strip()
    with Image.open(target) as made:
        assert made.size == (12, 8)
