"""Choices of form and device, and the machine's limits."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retinue.core.errors import ConfigError, EnvError
from retinue.ops import backend
from retinue.ops.malloc import tune_malloc

CPU = torch.device("cpu")


def test_override_is_undone_even_after_an_error() -> None:
    before = backend.form()
    with backend.override("plain"):
        assert backend.form() == "plain"
        assert backend.form("fast") == "fast"

    def fail() -> None:
        with backend.override("plain"):
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert backend.form() == before


def test_environment_chooses_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_OPS", "plain")
    assert backend._initial() == "plain"
    monkeypatch.setenv("RETINUE_OPS", "quick")
    with pytest.raises(ConfigError, match="RETINUE_OPS"):
        backend._initial()


def test_devices() -> None:
    assert backend.pick_device("cpu") == (CPU, "asked for")
    device, reason = backend.pick_device("auto")
    assert device.type in ("cpu", "cuda", "mps")
    assert reason
    with pytest.raises(ConfigError, match="one of auto"):
        backend.pick_device("gpu")
    with pytest.raises(EnvError, match="cuda:99"):
        backend.pick_device("cuda:99")


def test_auto_follows_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert backend.pick_device("auto")[0].type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert backend.pick_device("auto")[0] == CPU
    for absent in ("cuda", "mps"):
        with pytest.raises(EnvError, match=absent):
            backend.pick_device(absent)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quota_of_the_cgroup(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert backend._cgroup_cores(tmp_path) == cores


def test_threads_stay_within_the_machine() -> None:
    assert 1 <= backend.default_threads() <= (os.cpu_count() or 1)


def test_autocast_changes_only_what_is_asked() -> None:
    x = torch.ones(2, 2)
    for dtype, expected in ((None, x.dtype), (torch.float32, x.dtype), (torch.bfloat16,) * 2):
        with backend.autocast(CPU, dtype):
            assert (x @ x).dtype == expected


def test_report_is_readable_and_cpu_keeps_no_statistics() -> None:
    found = backend.report()
    assert found["torch"] == torch.__version__
    assert all(isinstance(value, str) for value in found.values())
    backend.synchronize(CPU)
    assert backend.memory_stats(CPU) == {}


def test_malloc_is_opt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_MALLOPT", "0")
    assert not tune_malloc()
    monkeypatch.delenv("RETINUE_MALLOPT")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not tune_malloc()


def test_malloc_stops_mapping_large_buffers() -> None:
    """In a process of its own: a block of 64 MiB comes from the heap only after tuning."""
    code = (
        "import ctypes, sys; from retinue.ops.malloc import tune_malloc; done = tune_malloc();"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p;"
        "p = libc.malloc(2**26); heap = [l for l in open('/proc/self/maps') if '[heap]' in l][0];"
        "low, high = (int(x, 16) for x in heap.split()[0].split('-'));"
        "print(done, low <= p < high)"
    )
    if platform.libc_ver()[0] != "glibc":
        assert not tune_malloc()
        return
    assert ctypes.CDLL(None).mallopt
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "True"]
