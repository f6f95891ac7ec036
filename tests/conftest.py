"""Shared by all tests: one thread, a free port, pictures drawn in code, a tiny tokenizer.

Warnings are errors (pyproject.toml). Properties are tried on the same examples in every run;
`--hypothesis-profile=search` looks for new ones.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import socket
import sys

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("repeatable")

pytest_plugins = ["ledger"]  # of tests/golden: which golden cases has this run compared?


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, and no more threads than the machine shares among the workers."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def free_port():
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def draw():
    """draw(width, height, seed=0) -> PIL image: a gradient with a few coloured boxes."""
    from PIL import Image, ImageDraw

    def picture(width, height, *, seed=0):
        ramp = Image.linear_gradient("L").resize((width, height))
        image = Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_180), ramp))
        pen = ImageDraw.Draw(image)
        for n in range(4):
            x, y = (seed * 37 + n * 53) % width, (seed * 11 + n * 29) % height
            colour = tuple((seed * 71 + n * 91 + c * 83) % 256 for c in range(3))
            pen.rectangle((x, y, x + width // 4, y + height // 5), fill=colour)
        return image

    return picture


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of about 330 ids, trained in a blink, with <image> among its specials."""
    from retinue.text.train import train_bpe

    lines = ["USER: what colour is the circle? ASSISTANT: the circle is red"] * 4
    return train_bpe(lines, vocab_size=330, specials=["<image>"])
