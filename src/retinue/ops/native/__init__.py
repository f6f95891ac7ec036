"""Kernels in C++, compiled once on the machine they run on; every one stands behind a Python form.

A kernel needs a compiler (`c++`, or what CXX names) and links to torch's own library; nothing else
is installed. What was compiled is kept in the cache folder, by source, flags, torch and processor.
`RETINUE_NATIVE=0` leaves all of them out.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch

from retinue.core.paths import cache_dir

FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-pthread",
)
PATIENCE_S = 120.0


def library(name: str) -> ctypes.CDLL | None:
    """The compiled `<name>.cpp` of this folder, or None where it cannot be had.

    Without a compiler, with a torch that lacks what the source links to, or where the cache cannot
    be written, the caller takes its other form; `retinue doctor` says so.
    """
    if os.environ.get("RETINUE_NATIVE", "1") == "0" or platform.system() != "Linux":
        return None
    source = resources.files(__package__).joinpath(f"{name}.cpp").read_text("utf-8")
    target = cache_dir("native") / f"{name}-{_key(source)}.so"
    try:
        if not target.exists():
            _compile(source, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(source: str, target: Path) -> None:
    """Write `target` in one move: processes that start together do not disturb each other."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    libraries = Path(torch.__file__).parent / "lib"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        text, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        text.write_text(source, encoding="utf-8")
        places = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu"]
        command = [compiler, *FLAGS, str(text), "-o", str(made), *places]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        made.replace(target)


def _key(source: str) -> str:
    """Of everything that the machine code depends on; home folders are shared between machines."""
    facts = [source, *FLAGS, torch.__version__, str(Path(torch.__file__).parent), _processor()]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
