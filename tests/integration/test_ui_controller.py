"""The web chat over LLaVA's controller, in a browser: models come, answer side by side, and go."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from browser import ask, launched, listed, needs_chromium, opened, pick, until
from loopback_app import listening
from retinue.demo.ui.controller import ControllerClient, server_at
from retinue.demo.ui.mount import with_page
from retinue.demo.ui.page import page
from retinue.serve.llava.controller import Controller, create_controller
from tiny import picture
from tiny_workers import process, worker

pytestmark = needs_chromium
BEAT, EXPIRY = 0.3, 3.0


def test_models_come_answer_side_by_side_and_go(tmp_path: Path) -> None:
    controller, outside = Controller(expiry=EXPIRY), []
    with (
        listening(create_controller(controller)) as front,
        worker("first", 5, front, beat=BEAT) as first,
        launched() as browser,
        ExitStack() as later,
    ):
        until(lambda: "first" in controller.models)
        server = server_at(front)
        assert isinstance(server, ControllerClient)
        blocks = page(server, every=0.5)
        with (
            listening(with_page(blocks, path="")) as address,
            opened(browser, address, outside) as tab,
        ):
            assert listed(tab, "#model") == ["first"]
            child = later.enter_context(process("second", 6, front, beat=BEAT))
            slider = tab.locator("#budget input[type=number]")
            slider.fill("1")
            slider.press("Enter")
            tab.wait_for_selector("#budget >> text=Visual tokens per view: 1")
            until(lambda: "second" in controller.models)  # its imports take a while
            until(lambda: listed(tab, "#model") == ["first", "second"])
            assert "per view: 1" in tab.inner_text("#budget")  # nothing chosen is disturbed

            # both answer one question about one picture, each for itself
            pick(tab, "#beside", "second")
            tab.wait_for_selector("#other", state="visible")
            file = tmp_path / "a.png"
            picture(1).save(file)
            tab.click("text=Parameters")
            longest = tab.get_by_label("number input for Longest answer, tokens")
            longest.fill("6")
            longest.press("Enter")
            ask(tab, "What is this?", file)
            for place in ("#answer", "#other"):
                tab.wait_for_selector(f"{place} >> text=1 visual tokens")
            said = [tab.inner_text(place) for place in ("#answer", "#other")]
            assert said[0] != said[1]
            assert first.engine.new_tokens > 0

            # the second dies without a word, while the visitor has chosen it for both places
            pick(tab, "#model", "second")
            child.kill()
            until(lambda: controller.models == ["first"])
            tab.wait_for_selector("text=second is gone; first answers from now on.")
            # the note comes while the lists are still being looked at
            for place, name in (("#model", "first"), ("#beside", "(nobody)")):
                tab.wait_for_function(f"document.querySelector('{place} input').value == '{name}'")
            assert listed(tab, "#model") == ["first"]
            assert outside == []
