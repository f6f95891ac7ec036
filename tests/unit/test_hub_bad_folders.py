"""Damaged files, full disks and misfits: one clear line, nothing half-written, the old one kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import cases

from retinue.core.errors import CheckpointError, EnvError
from retinue.hub.files import ShardWriter, whole_folder
from retinue.hub.load import load
from retinue.hub.save import save
from tiny import tiny_model

TRAIN = cases("m3-llava", "train*", having="train.json")
FULL = cases("m3-llava", "llava15-core*", having="model")


def test_a_truncated_safetensors_file(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    size = file.stat().st_size
    for kept in (size - 1, size // 2, 100, 4, 0):
        os.truncate(file, kept)
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "m")
        text = str(error.value)
        assert str(file) in text
        assert f"found {kept}" in text
        if kept > size // 4:
            assert f"expected {size} bytes" in text


def test_a_lost_shard(tmp_path: Path) -> None:
    model, processor = tiny_model()
    save(model, processor, tmp_path / "m", shard_bytes=60_000)
    lost = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load(tmp_path / "m")


@pytest.mark.parametrize("case", FULL, ids=lambda case: case.name)
def test_a_truncated_pickle(case: Path, tmp_path: Path) -> None:
    for name in ("model", "openai"):
        shutil.copytree(case / name, tmp_path / name)
    file = tmp_path / "model/pytorch_model.bin"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read"):
        load(tmp_path / "model")


class Harmful:
    """What unpickling must never run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("case", FULL, ids=lambda case: case.name)
def test_a_pickle_with_code_is_refused(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "openai"):
        shutil.copytree(case / name, tmp_path / name)
    torch.save({"w": Harmful()}, tmp_path / "model/pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="weights_only"):
        load(tmp_path / "model")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("case", TRAIN, ids=lambda case: case.name)
def test_what_is_no_multimodal_model(case: Path) -> None:
    tower = next(case.glob("*/*/preprocessor_config.json")).parent
    with pytest.raises(CheckpointError, match=r"vision-tower .*no multimodal model.*retinue build"):
        load(tower)


def test_a_base_that_does_not_fit_a_llava_lora(tmp_path: Path) -> None:
    case = TRAIN[0]
    lora = next(path.parent for path in case.glob("*/adapter_config.json"))
    with pytest.raises(CheckpointError) as error:
        load(lora, base=FULL[0] / "model")
    text = str(error.value)
    assert "(24, 24)" in text or "the shape" in text


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny import tiny_model
from retinue.core.errors import EnvError
from retinue.hub.save import save
model, processor = tiny_model()
save(model, processor, sys.argv[1])
with __import__("torch").no_grad():
    next(model.parameters()).zero_()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    save(model, processor, sys.argv[1])
except EnvError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


def test_no_room_keeps_the_previous_folder(tmp_path: Path) -> None:
    """The kernel refuses the write half way, as a full disk does."""
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "m"), tests],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "no room to write it" in done.stdout
    assert "the previous folder is kept" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    model, _ = load(tmp_path / "m")
    assert next(model.parameters()).abs().sum() > 0


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "new") as partial:
            (partial / "file").write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(EnvError, match="cannot be written"), whole_folder(tmp_path / "file/below"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with whole_folder(tmp_path / "m") as partial:
            (partial / text).write_text(text)
            (partial / "config.json").write_text("{}")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"new", "config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_folders_of_others_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home/model").mkdir(parents=True)
    (tmp_path / "home/letter.txt").write_text("dear")
    (tmp_path / "home/model/config.json").write_text("{}")
    for folder, work in (("home", "."), ("home/model", "home/model"), ("home", "home/model")):
        monkeypatch.chdir(tmp_path / work)
        refused = pytest.raises(CheckpointError, match="only a model's folder is replaced")
        with refused, whole_folder(tmp_path / folder):
            pass
    assert (tmp_path / "home/letter.txt").read_text() == "dear"


def test_an_empty_writer_still_writes_a_file(tmp_path: Path) -> None:
    ShardWriter(tmp_path).close()
    assert (tmp_path / "model.safetensors").exists()
