"""torchvision, timm, open_clip stay out: a misfitting torchvision breaks transformers."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED = ("torchvision", "timm", "open_clip", "open-clip-torch")


@pytest.mark.parametrize("name", BANNED)
def test_not_required_and_not_imported(name):
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    assert not re.search(rf"^{name}\b", pins, re.MULTILINE)
    assert not re.search(rf'"{name}\b', (ROOT / "pyproject.toml").read_text("utf-8"))
    for path in (ROOT / "src").rglob("*.py"):
        source = path.read_text("utf-8")
        assert not re.search(rf"^\s*(import|from) {name}\b", source, re.MULTILINE), path


@pytest.mark.parametrize("name", ["torchvision", "timm", "open_clip"])
def test_not_installed(name):
    assert importlib.util.find_spec(name) is None
