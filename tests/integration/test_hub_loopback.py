"""Hub ids against a hub on the loopback: only what is needed, cached, resumable, clear offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import cases

from loopback_hub import Hub, serve
from retinue.hub.convert import convert
from retinue.hub.load import load
from retinue.hub.resolve import needed

CASES = cases("m3-llava", "llava15-core*", having="model")
SCRIPT = """
import json, sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 4096  # so that a small file is downloaded in many pieces
from retinue.core.errors import RetinueError
from retinue.hub.load import load
out = []
for path in sys.argv[1:]:
    try:
        model, processor = load(path, template="vicuna_v1")
        total = sum(t.double().abs().sum().item() for t in model.state_dict().values())
        out.append({"sum": total, "width": model.plan.lm_width})
    except RetinueError as error:
        out.append({"error": type(error).__name__, "line": str(error), "code": error.exit_code})
print(json.dumps(out))
"""


def run(cache: Path, endpoint: str, *paths: str, **env: str) -> list[dict[str, Any]]:
    """Load each path in a fresh process that has never seen this hub's cache folder."""
    clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    settings = {
        **clean,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        **env,
    }
    settings.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in env else None
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        env=settings,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cache,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return result


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


def total(path: Path) -> float:
    model, _ = load(path, template="vicuna_v1")
    return sum(t.double().abs().sum().item() for t in model.state_dict().values())


def test_ids_load_what_is_needed_once(repos: dict[str, Path], tmp_path: Path) -> None:
    wanted = total(CASES[0] / "model")
    with serve(repos, "v2") as hub:
        paths = ("tiny/llava", "tiny/llava@v2", "tiny/nested:runs/last", "tiny/nested@v2:runs/last")
        found = run(tmp_path, hub.url, *paths)
        assert [row.get("sum") for row in found] == [pytest.approx(wanted, rel=1e-12)] * 4, found
        names = hub.downloaded()
        assert "pytorch_model.bin" in names
        assert "runs/last/model.safetensors" in names
        assert not names & {"training_args.bin", "README.md", "big.bin"}
        hub.requests.clear()
        assert run(tmp_path, hub.url, *paths) == found
        assert hub.requests == []
    offline = run(tmp_path, hub.url, *paths)
    assert offline == found


def test_what_is_not_there(repos: dict[str, Path], tmp_path: Path) -> None:
    with serve(repos) as hub:
        found = run(tmp_path, hub.url, "tiny/none", "tiny/llava@v9", "tiny/nested:no/where")
    assert [(row["error"], row["code"]) for row in found] == [("CheckpointError", 2)] * 3
    assert "no such repository" in found[0]["line"]
    assert "no such revision" in found[1]["line"]
    assert "under no/where" in found[2]["line"]


def test_offline_without_a_cache_is_an_environment_error(tmp_path: Path) -> None:
    with serve({}) as hub:
        gone = hub.url
    found = run(tmp_path, gone, "tiny/llava")
    found += run(tmp_path, gone, "tiny/llava", HF_HUB_OFFLINE="1")
    for row in found:
        assert (row["error"], row["code"]) == ("EnvError", 4)
        assert row["line"].startswith("tiny/llava: the hub cannot be reached")
        assert "HF_ENDPOINT" in row["line"]


def resumed_from(hub: Hub, name: str) -> list[int]:
    return [start for start, file in hub.requests if file == name]


def test_a_broken_download_goes_on_where_it_stopped(repos: dict[str, Path], tmp_path: Path) -> None:
    with serve(repos) as hub:
        hub.cut["pytorch_model.bin"] = 50_000
        found = run(tmp_path, hub.url, "tiny/llava")
        if "error" in found[0]:  # the client gave up: the next command goes on
            found = run(tmp_path, hub.url, "tiny/llava")
        assert found[0]["sum"] == pytest.approx(total(CASES[0] / "model"), rel=1e-12)
        starts = resumed_from(hub, "pytorch_model.bin")
        assert starts[0] == 0
        assert 0 < starts[-1] <= 50_000


def test_safetensors_come_before_pickles() -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "consolidated.00.pth"]
    names += ["optimizer.pt", "a/config.json", "tokenizer.model", "pytorch_model.bin.index.json"]
    found = needed(names, subfolder=None, weights=True)
    assert found == ["config.json", "model.safetensors", "tokenizer.model"]
    assert needed(names, subfolder="a", weights=True) == ["a/config.json"]
    assert "model.safetensors" not in needed(names, subfolder=None, weights=False)
