"""Hub ids against a hub on the loopback: only what is needed, cached, resumable, clear offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import cases
from huggingface_hub import constants

from loopback_hub import serve
from retinue.core.errors import CheckpointError, EnvError
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.resolve import needed

CASES = cases("m3-llava", "llava15-core*", having="model")
SCRIPT = """
import sys
from retinue.hub.load import load
model, processor = load(sys.argv[1], template="vicuna_v1")
print("width", model.plan.lm_width)
"""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """at(url): this process's hub is there, its cache is empty at first."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # small files in many pieces
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)

    def point(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LLaVA repository, one in a subfolder beside other things, and the tower they name."""
    root = tmp_path_factory.mktemp("repos")
    case = CASES[0]
    tower = next(case.glob("openai/*/config.json")).parent
    shutil.copytree(case / "model", root / "llava")
    (root / "llava/training_args.bin").write_bytes(b"not wanted")
    (root / "llava/README.md").write_text("not wanted")
    shutil.copytree(tower, root / "tower")
    (root / "nested").mkdir()
    (root / "nested/big.bin").write_bytes(bytes(1000))
    convert(case / "model", root / "nested/runs/last", to="retinue", template="vicuna_v1")
    return {
        "tiny/llava": root / "llava",
        f"openai/{tower.name}": root / "tower",
        "tiny/nested": root / "nested",
    }


def total(path: str | Path) -> float:
    model, _ = load(path, template="vicuna_v1")
    return sum(t.double().abs().sum().item() for t in model.state_dict().values())


def test_ids_load_what_is_needed_once(repos: dict[str, Path], at: Callable[[str], None]) -> None:
    wanted = total(CASES[0] / "model")
    paths = ["tiny/llava", "tiny/llava@v2", "tiny/nested:runs/last", "tiny/nested@v2:runs/last"]
    with serve(repos, "v2") as hub:
        at(hub.url)
        assert [total(path) for path in paths] == [wanted] * len(paths)
        names = hub.downloaded()
        assert {"pytorch_model.bin", "runs/last/model.safetensors"} <= names
        assert not names & {"training_args.bin", "README.md", "big.bin"}
        hub.requests.clear()
        assert [total(path) for path in paths] == [wanted] * len(paths)
        assert hub.requests == []
    assert [total(path) for path in paths] == [wanted] * len(paths)  # the hub is gone


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("tiny/none", "no such repository"),
        ("tiny/llava@v9", "no such revision"),
        ("tiny/nested:no/where", "under no/where"),
    ],
)
def test_what_is_not_there(
    repos: dict[str, Path], at: Callable[[str], None], path: str, said: str
) -> None:
    with serve(repos) as hub:
        at(hub.url)
        with pytest.raises(CheckpointError, match=said):
            load(path)


def test_offline_without_a_cache(
    at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({}) as hub:
        at(hub.url)
    with pytest.raises(EnvError, match=r"^tiny/llava: the hub cannot be reached.*HF_ENDPOINT"):
        load("tiny/llava")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvError, match=r"^tiny/llava: the hub cannot be reached.*HF_HUB_OFFLINE"):
        load("tiny/llava")


def test_a_broken_download_goes_on_where_it_stopped(
    repos: dict[str, Path], at: Callable[[str], None]
) -> None:
    with serve(repos) as hub:
        at(hub.url)
        hub.cut["pytorch_model.bin"] = 50_000
        assert total("tiny/llava") == total(CASES[0] / "model")
        starts = [start for start, file in hub.requests if file == "pytorch_model.bin"]
    assert starts[0] == 0
    assert 40_000 < starts[1] <= 50_000  # what follows is the tower, whose file has the same name


def test_the_endpoint_of_the_environment_is_used(repos: dict[str, Path], tmp_path: Path) -> None:
    settings = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    settings |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    settings.pop("HF_HUB_OFFLINE", None)
    with serve(repos) as hub:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "tiny/llava"],
            env={**settings, "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "width" in done.stdout


def test_safetensors_come_before_pickles() -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "consolidated.00.pth"]
    names += ["optimizer.pt", "a/config.json", "tokenizer.model", "pytorch_model.bin.index.json"]
    found = needed(names, subfolder=None, weights=True)
    assert found == ["config.json", "model.safetensors", "tokenizer.model"]
    assert needed(names, subfolder="a", weights=True) == ["a/config.json"]
    assert "model.safetensors" not in needed(names, subfolder=None, weights=False)
