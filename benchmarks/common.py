"""Shared by every benchmark: one thread, alternating rounds, CPU time, one result file, one line.

Import this module before torch: it pins the number of threads. The rules it implements: both sides
do the same work in one process, one warm-up each, ABAB order, at least three rounds, and the ratio
is taken between minima (the machine may be shared; a minimum is what the code needs).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call over all rounds."""

    min_s: float
    median_s: float
    calls: int


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that already knows --quick; benchmarks add their own options to it."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="at most a minute, no result file")
    return made


def alternate(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 3,
    calls: int = 1,
    warmup: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Time every side `calls` times a round, side after side, for `rounds` >= 3 rounds.

    clock: CPU time of the process by default; pass one that synchronises for an accelerator.
    """
    assert rounds >= 3, "a minimum of fewer than three rounds says little"
    for run in sides.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            for _ in range(calls):
                start = clock()
                run()
                seconds[name].append(clock() - start)
    return {
        name: Timing(min_s=min(times), median_s=statistics.median(times), calls=len(times))
        for name, times in seconds.items()
    }


def cuda_clock() -> float:
    """Wall time after all queued work of the accelerator is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def table(timings: Mapping[str, Timing], *, peer: str) -> None:
    """Print min, median and the ratio to `peer` of each side."""
    width = max(map(len, timings))
    for name, timing in timings.items():
        ratio = timings[peer].min_s / timing.min_s
        print(
            f"{name:{width}}  min {timing.min_s * 1e3:10.3f} ms   "
            f"median {timing.median_s * 1e3:10.3f} ms   x{ratio:.2f}"
        )


def require(same: bool, what: str) -> None:
    """Leave with exit code 1 where the two sides did not do the same work."""
    if not same:
        sys.exit(f"the sides differ: {what}")


def finish(
    name: str,
    *,
    ratio: float,
    target: float,
    against: str,
    quick: bool,
    timings: Mapping[str, Timing],
    details: Mapping[str, Any],
    device: str = "cpu",
    variant: str = "",
) -> None:
    """Write results/<name>.json (not with --quick) and print the last line of the contract.

    variant: of the options, in the file's name.
    """
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        suffix = f"_{variant}" * bool(variant) + ("" if device == "cpu" else f"_{device}")
        record = {
            "name": name,
            "ratio": round(ratio, 4),
            "target": target,
            "against": against,
            "timings": {key: asdict(timing) for key, timing in timings.items()},
            "details": dict(details),
            **provenance(device),
        }
        path = RESULTS / f"{name}{suffix}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"{name} ratio={ratio:.2f} target={target:g} against={against}")


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Commit, hardware, command and versions of this run; no paths of the machine."""
    return {
        "commit": commit(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **versions()},
    }


def commit() -> str:
    """Hash of HEAD, with a plus sign if tracked files differ from it."""
    here = Path(__file__).parent
    try:
        head = _git("rev-parse", "--short=12", "HEAD", cwd=here)
        dirty = _git("status", "--porcelain", "--untracked-files=no", cwd=here)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")


def _git(*words: str, cwd: Path) -> str:
    done = subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def hardware(device: str) -> dict[str, Any]:
    """CPU model, usable cores, memory in GiB, and the accelerator where one was timed."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    found: dict[str, Any] = {"cpu": model, "cores": len(os.sched_getaffinity(0))}
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        )
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
