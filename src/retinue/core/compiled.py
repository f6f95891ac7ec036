"""Kernels in C++, compiled once on the machine they run on; every one stands behind a Python form.

A kernel needs a compiler (`c++`, or what CXX names); nothing is installed. What was compiled is
kept in the cache folder, by source, flags, linked libraries and processor. `RETINUE_NATIVE=0`
leaves all of them out.
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
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

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


def library(
    package: str, name: str, *, folder: Path | None = None, links: Sequence[str] = ()
) -> ctypes.CDLL | None:
    """The compiled `<name>.cpp` of a package's folder, or None where it cannot be had.

    folder, links: where further libraries lie, and their names (`torch_cpu`). Without a compiler,
    where a name that the source links to is missing, or where the cache cannot be written, the
    caller takes its other form.
    """
    if os.environ.get("RETINUE_NATIVE", "1") == "0" or platform.system() != "Linux":
        return None
    source = resources.files(package).joinpath(f"{name}.cpp").read_text("utf-8")
    places = [f"-L{folder}", f"-Wl,-rpath,{folder}"] if folder else []
    options = [*FLAGS, *places, *(f"-l{link}" for link in links)]
    facts = [source, *options, _processor(), *(_stamp(folder, link) for link in links)]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    target = cache_dir("native") / f"{name}-{key}.so"
    try:
        if not target.exists():
            _compile(source, target, options)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(source: str, target: Path, options: Sequence[str]) -> None:
    """Write `target` in one move: processes that start together do not disturb each other."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        text, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        text.write_text(source, encoding="utf-8")
        command = [compiler, str(text), "-o", str(made), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        made.replace(target)


def _stamp(folder: Path | None, link: str) -> str:
    """Tells one build of a linked library from another."""
    file = (folder or Path()) / f"lib{link}.so"
    return f"{file} {file.stat().st_size}" if file.exists() else link


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
