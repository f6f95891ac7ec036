"""`retinue serve` as a process: it says where it listens, answers, and drains when told to stop."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from retinue.cli.main import run
from retinue.hub.save import save
from tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served") / "tiny"
    save(*tiny_model(seed=5), place)
    return place


def test_replies_under_way_end_before_the_server_does(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "retinue", "serve", str(folder), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RETINUE_API_KEYS": ""},
    )
    try:
        line = process.stderr.readline()
        (address,) = re.findall(r"tiny at (http://127\.0\.0\.1:\d+)/v1", line)
        body = {"model": "tiny", "prompt": "the", "max_tokens": 300, "ignore_eos": True}
        request = urllib.request.Request(
            f"{address}/v1/completions", json.dumps({**body, "stream": True}).encode()
        )
        request.add_header("content-type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as reply:
            first = reply.readline()
            assert first.startswith(b"data: ")
            process.send_signal(signal.SIGTERM)
            rest = reply.read().decode()
        assert rest.rstrip().endswith("data: [DONE]")
        last = [line for line in rest.splitlines() if line.startswith("data: {")][-1]
        assert json.loads(last[6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_wrong_options_end_in_a_line(folder, tmp_path, capsys):
    empty = tmp_path / "keys.txt"
    empty.write_text("\n")
    assert run(["serve", str(folder), "--api-key-file", str(empty)]) == 2
    assert "has no key" in capsys.readouterr().err
    assert run(["serve", str(folder), "--host", "203.0.113.1"]) == 2
    assert "cannot listen here" in capsys.readouterr().err
