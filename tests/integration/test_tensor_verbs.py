"""chat, generate and serve in two processes that share the layers: replies of one, said once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from retinue.decode.chat import Chat
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.hub.save import save
from tiny import picture, tiny_model

pytestmark = pytest.mark.slow

QUESTIONS = ["what colour is the circle?", "how many shapes?", "and the others?"]
LENGTH = 10
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
RETINUE = [sys.executable, "-m", "retinue"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "retinue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("tp") / "model"
    save(*tiny_model(seed=3), place)
    picture(2).save(place.parent / "a.png")
    return place


@pytest.fixture(scope="module")
def replies(folder: Path) -> list[str]:
    """One process's answers to the questions of a conversation; the first shows a picture."""
    model, processor = load(folder)
    chat = Chat(model, processor, params=SamplingParams(max_new_tokens=LENGTH))
    shown = [[str(folder.parent / "a.png")], [], []]
    found = ["".join(chat.ask(q, images=i)) for q, i in zip(QUESTIONS, shown, strict=True)]
    assert len(set(found)) == len(found)
    assert any(found)
    return found


def asked(command: list[str], *options: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(
        [*command, *options, "--device", "cpu", "--max-new-tokens", str(LENGTH)],
        input=text,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_chat_in_two_processes_says_what_one_says_once(folder: Path, replies: list[str]) -> None:
    options = ["chat", str(folder), "--image", str(folder.parent / "a.png"), "--tp", "2"]
    done = asked(RETINUE, *options, text="".join(f"{question}\n" for question in QUESTIONS))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(f"{reply}\n" for reply in replies)
    assert done.stderr == ""


def test_torchrun_generates_what_one_process_writes(folder: Path, tmp_path: Path) -> None:
    from retinue.cli.generate import write_answers

    rows = tmp_path / "rows.jsonl"
    image = {"type": "image", "image": str(folder.parent / "a.png")}
    with rows.open("w", encoding="utf-8") as file:
        for number in range(4):
            content = [image, {"type": "text", "text": f"how many {number}?"}]
            row = {"id": f"q{number}", "messages": [{"role": "user", "content": content}]}
            file.write(json.dumps(row) + "\n")
    model, processor = load(folder)
    params = SamplingParams(max_new_tokens=LENGTH, temperature=0.8, seed=4)
    write_answers(model, processor, rows, tmp_path / "one.jsonl", params=params, batch_size=3)
    files = ["--input", str(rows), "--output", str(tmp_path / "two.jsonl")]
    options = ["--temperature", "0.8", "--seed", "4", "--batch-size", "3"]
    done = asked(TORCHRUN, "generate", str(folder), *files, *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert done.stderr.count("4 answers in") == 1


def children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text("utf-8")
    return [int(number) for number in listed.split()]


@contextmanager
def running(command: list[str]) -> Iterator[Any]:
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    others: list[int] = []
    assert process.stderr is not None
    try:
        yield process
    finally:
        if process.poll() is None:
            others = children(process.pid)
            process.kill()
        process.wait()
        for other in others:
            with_no_error(other)
        process.stderr.close()


def with_no_error(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def post(address: str, question: str) -> str:
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": LENGTH,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return str(json.load(reply)["choices"][0]["message"]["content"])


def test_a_server_of_two_processes(folder: Path) -> None:
    """Replies of one process; when the second process dies, so does the server, with one line."""
    model, processor = load(folder)
    params = SamplingParams(max_new_tokens=LENGTH)
    command = [*RETINUE, "serve", str(folder), "--device", "cpu", "--port", "0", "--tp", "2"]
    with running([*command, "--kv-tokens", "2048"]) as server:
        line = server.stderr.readline()
        found = re.search(r"at (http://\S+)/v1", line)
        assert found, line + server.stderr.read()
        for question in QUESTIONS:
            alone = "".join(Chat(model, processor, params=params).ask(question))
            assert post(found[1], question).strip() == alone.strip()
        (other,) = children(server.pid)
        os.kill(other, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)):
            post(found[1], QUESTIONS[0])
        assert server.wait(timeout=60) == 4
        assert time.monotonic() - started < 60
        said = server.stderr.read()
        assert said.strip().count("\n") == 0, said
        assert "process 1 of 2 has ended (SIGKILL); run the same command again\n" in said
