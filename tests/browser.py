"""The page of the web chat in Debian's chromium, driven by playwright."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
WAIT_S = 150.0
"""How long anything may take. Where all cores are busy, Linux's groups of processes by session
were seen to leave a browser without a moment of CPU time for more than half a minute."""


@contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=WAIT_S * 1000
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, outside: list[str], *, width: int = 1280) -> Iterator[Any]:
    """The page in a tab; `outside` gets what it asks of anybody but `address`.

    The tab is closed whatever happens: its streams would keep the server from ending.
    """
    tab = browser.new_page(viewport={"width": width, "height": 860})
    tab.set_default_timeout(WAIT_S * 1000)
    own = (address, "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(own) else outside.append(r.url))
    try:
        tab.goto(address)
        yield tab
    finally:
        tab.close()


def ask(tab: Any, text: str, file: Path | None = None) -> None:
    """A question with a picture, as a visitor would."""
    if file is not None:
        tab.set_input_files("#question input[type=file]", str(file))
        tab.wait_for_selector("#question img")
    tab.fill("#question textarea", text)
    tab.press("#question textarea", "Enter")


def listed(tab: Any, place: str) -> list[str]:
    """What a dropdown offers now."""
    tab.click(f"{place} input")
    tab.wait_for_selector("ul[role=listbox]")
    found = [text.strip() for text in tab.locator("ul[role=listbox] li").all_inner_texts()]
    tab.locator(f"{place} input").blur()  # a click opens it only where it has no focus yet
    tab.wait_for_selector("ul[role=listbox]", state="detached")
    return [text.removeprefix("✓").strip() for text in found]


def pick(tab: Any, place: str, choice: str) -> None:
    """Choose an entry of a dropdown."""
    tab.click(f"{place} input")
    tab.click(f"ul[role=listbox] >> text={choice}")


def until(condition: Any) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
