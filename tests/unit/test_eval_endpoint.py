"""A benchmark against an OpenAI-compatible server, a small one of our own on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from miniatures import miniature
from retinue.cli.main import run
from retinue.core.errors import DataError, EnvError
from retinue.eval import endpoint
from retinue.eval.endpoint import Endpoint, data_uri
from retinue.eval.judging import match
from retinue.types import Media
from tiny import ask, picture


class Server(ThreadingHTTPServer):
    """Says yes to every question; `failures` are statuses for the next requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.failures, self.reply = [], [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status = self.server.failures.pop(0) if self.server.failures else 200
        choice = {"message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
        said = {"choices": [choice]} if self.server.reply is None else self.server.reply
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_benchmark_over_the_wire(server, tmp_path):
    folder = miniature("pope", tmp_path)
    out = tmp_path / "out" / "r.json"
    server.failures = [503, 429]
    command = ["eval", "their-model", "pope", "--tasks-root", str(tmp_path), "--json", str(out)]
    assert run([*command, "--endpoint", server.url]) == 0
    found = json.loads(out.read_text("utf-8"))
    assert found["benchmark"]["metrics"]["yes_ratio"] == 1.0
    assert found["benchmark"]["score"] == pytest.approx(2 / 3)
    assert found["settings"]["endpoint"] == server.url
    assert len(server.asked) == 6 + 2
    path, key, body = server.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("their-model", 128, 0.0)
    shown, _, words = body["messages"][0]["content"]
    sent = base64.b64decode(shown["image_url"]["url"].partition("base64,")[2])
    assert sent == (folder / "val2014" / "p.jpg").read_bytes()
    assert shown["image_url"]["url"].startswith("data:image/jpeg;")
    assert words["text"].startswith("Is there a dog in the image?")


def test_a_judge_scores_open_answers_once(server, tmp_path):
    miniature("llava-bench", tmp_path)
    out = tmp_path / "out" / "r.json"
    (tmp_path / "said.json").write_text('{"0": "A bar.", "1": "Red."}', "utf-8")
    server.reply = {"choices": [{"message": {"content": "8 6\nThe second is shorter."}}]}
    command = ["eval", "--predictions", str(tmp_path / "said.json"), "llava-bench"]
    command += ["--tasks-root", str(tmp_path), "--json", str(out)]
    assert run(command) == 0
    assert json.loads(out.read_text("utf-8"))["benchmark"]["score"] is None
    command += ["--judge", server.url, "--judge-model", "j"]
    for _ in range(2):
        assert run(command) == 0
        assert len(server.asked) == 2
        found = json.loads(out.read_text("utf-8"))
        assert found["settings"]["judge"] == "j"
        metrics = found["benchmark"]["metrics"]
        assert metrics["relative"] == pytest.approx(0.75)
        assert (metrics["reference"], metrics["model"]) == pytest.approx((0.8, 0.6))
    asked = [body["messages"] for _, _, body in server.asked]  # both at once: in either order
    assert all(system["role"] == "system" for system, _ in asked)
    assert sorted(user["content"][0]["text"] for _, user in asked)[0] == (
        "[Context]\nA red bar.\n\n[Question]\nTell of 0.\n\n[Assistant 1]\nT0.\n\n"
        "[End of Assistant 1]\n\n[Assistant 2]\nA bar.\n\n[End of Assistant 2]\n\n"
        "[System]\nTwo scores on the first line, please.\n\n"
    )


def test_a_judge_says_which_answers_match(server, tmp_path):
    miniature("msvd", tmp_path)
    out = tmp_path / "out" / "r.json"
    (tmp_path / "said.json").write_text('{"7": "She eats.", "8": "A park."}', "utf-8")
    server.reply = {"choices": [{"message": {"content": "{'pred': 'yes', 'score': 4}"}}]}
    command = ["eval", "--predictions", str(tmp_path / "said.json"), "msvd", "--json", str(out)]
    command += ["--tasks-root", str(tmp_path), "--judge", server.url]
    assert run(command) == 0
    found = json.loads(out.read_text("utf-8"))["benchmark"]
    assert found["metrics"] == {"accuracy": 1.0, "grade": 4.0}
    said = [body["messages"][1]["content"][0]["text"] for _, _, body in server.asked]
    assert any("Correct Answer: eating\nPredicted Answer: She eats." in text for text in said)


@pytest.mark.parametrize(
    ("review", "wanted"),
    [
        ("{'pred': 'yes', 'score': 4.8}", (True, 4.8)),
        ('{"pred": "No", "score": "1"}', (False, 1.0)),
        ("I think yes.", (False, 0.0)),
    ],
)
def test_reviews_are_read_or_count_as_no(review, wanted):
    assert match(review) == wanted


def test_answers_come_in_order_and_refusals_are_told(server):
    told = []
    samples = [ask(str(n), f"q{n}?", picture(n)) for n in range(9)]
    samples[4] = ask("4", "q?", "missing.png")
    answers = Endpoint(url=server.url, model="m", workers=3)(
        samples, lambda number, sample, error: told.append((number, sample.id))
    )
    assert [answer.number for answer in answers] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert told == [(4, "4")]
    with pytest.raises(DataError, match=r"missing\.png"):
        list(Endpoint(url=server.url, model="m")(samples, None))


def test_a_server_that_cannot_be_used(server):
    model = Endpoint(url=server.url, model="m", workers=1)
    one = [ask("a", "q?")]
    server.failures = [401]
    with pytest.raises(EnvError, match=r"401.*OPENAI_API_KEY"):
        list(model(one, None))
    assert len(server.asked) == 1
    server.failures = [500] * 9
    with pytest.raises(EnvError, match="500"):
        list(model(one, None))
    server.failures, server.reply = [], {"error": "odd"}
    with pytest.raises(EnvError, match="no answer"):
        list(model(one, None))


def test_what_is_sent_of_media(tmp_path):
    assert data_uri(Media(source=picture(1))).startswith("data:image/png;base64,")
    assert data_uri(Media(source="https://example.org/a.png")) == "https://example.org/a.png"
    with pytest.raises(DataError, match="video"):
        data_uri(Media(kind="video", source=str(tmp_path / "v.mp4")))
