"""The web chat started by its verbs: behind a password, beside an API with keys, and refusals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import ask, launched, needs_chromium, opened
from loopback_app import free_port
from retinue.cli.main import run
from retinue.hub.save import save
from tiny import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    place: Path = tmp_path_factory.mktemp("paged") / "tiny"
    save(*tiny_model(seed=5), place)
    return place


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    keys = tmp_path / "keys.txt"
    keys.write_text("theirs\n")
    told = [str(folder), "--ui", "--password", "me:secret", "--api-key-file", str(keys)]
    process = subprocess.Popen(
        [sys.executable, "-m", "retinue", "serve", *told, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        (address,) = re.findall(r"the web chat at (http://127\.0\.0\.1:\d+)/ui", line)
        yield process, address
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@needs_chromium
def test_the_page_of_a_server_with_keys(served: Any) -> None:
    process, address = served
    with launched() as browser, opened(browser, f"{address}/ui", []) as tab:
        tab.fill("input[type=text], label:has-text('username') input, textarea", "me")
        tab.fill("input[type=password]", "secret")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#question textarea")
        tab.click("text=Parameters")
        longest = tab.get_by_label("number input for Longest answer, tokens")
        longest.fill("4")
        longest.press("Enter")
        ask(tab, "What is this?")
        tab.wait_for_selector("#answer >> text=/[1-4] tokens/")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/v1/models")
    request = urllib.request.Request(f"{address}/v1/models")
    request.add_header("authorization", "Bearer theirs")
    with urllib.request.urlopen(request) as reply:
        assert b'"tiny"' in reply.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("serve m --ui --api-key-file KEYS", "past the keys"),
        ("serve m --password me:secret", "no page to ask for it"),
        ("serve --ui --as controller", "--ui without a model of one's own"),
        ("ui", "no model is named"),
        ("ui m --controller http://127.0.0.1:9", "models and a controller besides"),
        ("ui --controller there --port 0", "is no URL"),
        ("ui --controller NOWHERE --port 0", "no controller of LLaVA's protocol answers"),
        ("ui NOWHERE --port 0", "no server of the OpenAI API answers"),
    ],
)
def test_wrong_options_end_in_a_line(line: str, says: str, tmp_path: Path, capsys: Any) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a\n")
    nowhere = f"http://127.0.0.1:{free_port()}"
    told = [{"KEYS": str(keys), "NOWHERE": nowhere}.get(word, word) for word in line.split()]
    assert run(told) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
