"""Pictures by URL: from listed public hosts and below listed folders, never from elsewhere."""

import contextlib
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from loopback_app import listening
from retinue.core.errors import MediaError
from retinue.decode.prompt import user_message
from retinue.decode.sampling import SamplingParams
from retinue.serve.app import create_app
from retinue.serve.fetch import Fetcher, public
from retinue.serve.messages import PictureLimits
from retinue.serve.service import ServeSpec, Service
from retinue.types import Sample
from serve_client import GREEDY, call, turn
from tiny import picture, tiny_model
from tiny_serve import reference

PUBLIC, OTHER = "93.184.215.14", "93.184.215.15"
"""Addresses of the open internet; `dial` below leads to the loopback instead, after the check."""
LIMITS = PictureLimits(bytes=40_000, pixels=10_000, hosts=("pictures.test", "*.cdn.test"))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Pages(BaseHTTPRequestHandler):
    """What the host of pictures has."""

    def do_GET(self):
        self.server.asked.append((self.headers["host"], self.path))
        name, _, rest = self.path[1:].partition("/")
        if name == "to":  # /to/<url> redirects there
            self.send_response(302)
            self.send_header("location", rest)
            self.end_headers()
            return
        data = {"a.png": png(picture(1)), "text": b"no picture", "big": b"x" * 50_000}
        data["wide.png"] = png(picture(width=101, height=100))
        if name == "drip":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        if name not in data:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data[name])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


NAMES = {
    "pictures.test": [PUBLIC],
    "img.cdn.test": [OTHER],
    "inside.cdn.test": ["10.0.0.8"],
    "mixed.cdn.test": [PUBLIC, "127.0.0.1"],
    "six.cdn.test": ["::ffff:169.254.169.254"],
    "localhost": ["127.0.0.1"],
    "127.0.0.1": ["127.0.0.1"],
}


@pytest.fixture
def fetcher(host):
    dialled = []

    def resolve(name, port):
        if name not in NAMES:
            raise OSError("no such name")
        return NAMES[name]

    def dial(address, port, seconds):
        dialled.append(address)
        assert address in (PUBLIC, OTHER), "a private address was dialled"
        return socket.create_connection(host.server_address, timeout=seconds)

    made = Fetcher(LIMITS.hosts, max_bytes=LIMITS.bytes, seconds=1.0, resolve=resolve, dial=dial)
    made.dialled = dialled
    return made


def test_listed_hosts_are_fetched(fetcher, host):
    assert fetcher.get("http://pictures.test/a.png") == png(picture(1))
    assert fetcher.get("HTTP://IMG.cdn.test/a.png") == png(picture(1))
    assert host.asked[-1] == ("img.cdn.test", "/a.png")
    assert fetcher.dialled == [PUBLIC, OTHER]
    assert fetcher.get("http://pictures.test/to/http://img.cdn.test/a.png") == png(picture(1))


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.test/a.png",
        "http://cdn.test/a.png",  # *.cdn.test is what is below it
        "http://evilcdn.test/a.png",
        "http://localhost/a.png",
        "http://127.0.0.1/a.png",
        "http://2130706433/a.png",
        "http://[::1]/a.png",
        "http://pictures.test:8080/a.png",
        "http://user:pass@pictures.test/a.png",
        "ftp://pictures.test/a.png",
        "http://inside.cdn.test/a.png",
        "http://mixed.cdn.test/a.png",
        "http://six.cdn.test/a.png",
        "http://gone.cdn.test/a.png",
        "http://pictures.test/to/http://inside.cdn.test/a.png",
        "http://pictures.test/to/http://169.254.169.254/latest/meta-data",
        "http://pictures.test/to/file:///etc/passwd",
        "http://pictures.test/to/http://pictures.test/to/http://pictures.test/to/"
        "http://pictures.test/to/http://pictures.test/a.png",
        "http://pictures.test/missing",
        "http://",
        "http://[",
    ],
)
def test_everything_else_is_refused(fetcher, url):
    with pytest.raises(MediaError, match="not fetched"):
        fetcher.get(url)


def test_every_public_host_still_means_public(host, fetcher):
    fetcher.hosts = ["*"]
    assert fetcher.get("http://img.cdn.test/a.png")
    for url in ("http://localhost/a.png", "http://inside.cdn.test/a.png"):
        with pytest.raises(MediaError, match="no public address"):
            fetcher.get(url)


def test_size_and_time_are_limited(fetcher):
    with pytest.raises(MediaError, match="at most 40000 bytes"):
        fetcher.get("http://pictures.test/big")
    start = time.monotonic()
    with pytest.raises(MediaError, match="not fetched"):
        fetcher.get("http://pictures.test/drip")
    assert time.monotonic() - start < 3


def test_addresses():
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert public(address)
    private = "127.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 ::1 ::"
    private += " fe80::1%eth0 fd00::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 224.0.0.1 x"
    for address in private.split():
        assert not public(address), address


@pytest.fixture
def served(fetcher, tmp_path):
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "b c.png").write_bytes(png(picture(2)))
    (tmp_path / "secret.png").write_bytes(png(picture(3)))
    (tmp_path / "shown" / "link.png").symlink_to(tmp_path / "secret.png")
    model, processor = tiny_model(seed=5)
    limits = LIMITS.model_copy(update={"roots": (tmp_path / "shown",)})
    spec = ServeSpec(pictures=limits)
    service = Service(model, processor, name="tiny", spec=spec, fetcher=fetcher)
    with listening(create_app(service)) as address:
        yield service, address
    service.engine.check_integrity()


def expected(service, image):
    sample = Sample(id="a", messages=(user_message("what?", [image]),))
    params = SamplingParams(max_new_tokens=8)
    return reference(service.engine.model, service.processor, sample, params=params).text


def test_remote_pictures_and_files_through_the_api(served, tmp_path):
    service, address = served
    files = (tmp_path / "shown" / "b c.png").as_uri()
    with openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        for url, image in (
            ("http://pictures.test/a.png", picture(1)),
            (files, picture(2)),
            (files.replace("file://", "file://localhost"), picture(2)),
        ):
            reply = client.chat.completions.create(
                model="tiny", messages=turn("what?", url), **GREEDY
            )
            assert reply.choices[0].message.content == expected(service, image)
    wrong = [
        ("http://pictures.test/text", 400),
        ("http://pictures.test/big", 413),
        ("http://pictures.test/wide.png", 413),
        ("http://localhost/a.png", 400),
        ((tmp_path / "secret.png").as_uri(), 400),
        ((tmp_path / "shown" / "link.png").as_uri(), 400),
        ((tmp_path / "shown").as_uri() + "/../secret.png", 400),
        ((tmp_path / "shown").as_uri() + "/%2e%2e/secret.png", 400),
        ((tmp_path / "shown").as_uri(), 400),
        ("file://other.test/etc/passwd", 400),
        ("file:///etc/passwd", 400),
        ("file:///\0", 400),
    ]
    for url, wanted in wrong:
        body = {"messages": turn("what?", url), **GREEDY}
        status, reply = call(address, "/v1/chat/completions", body)
        assert status == wanted, (url, reply)
        assert reply["error"]["code"] in ("invalid_image", None), (url, reply)
        assert "root:" not in str(reply)


def test_several_answers_fetch_a_picture_once(served, host):
    _, address = served
    before = len(host.asked)
    body = {"messages": turn("what?", "http://pictures.test/a.png"), "n": 3, **GREEDY}
    assert call(address, "/v1/chat/completions", body)[0] == 200
    assert len(host.asked) == before + 1


def test_nothing_is_fetched_unless_hosts_are_named(host):
    service = Service(*tiny_model(seed=5), name="tiny")
    assert service.fetcher is None
    before = len(host.asked)
    port = host.server_address[1]
    with listening(create_app(service)) as address:
        for url in (f"http://127.0.0.1:{port}/a.png", "http://pictures.test/a.png"):
            body = {"messages": turn("what?", url), **GREEDY}
            status, reply = call(address, "/v1/chat/completions", body)
            assert (status, reply["error"]["code"]) == (400, "invalid_image")
    assert len(host.asked) == before
