"""`retinue doctor`: what this machine offers, which device would be chosen, what is broken."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import typer

from retinue.cli.common import AsJson, Device, examples, print_json, verb
from retinue.core.log import print_table
from retinue.core.paths import cache_dir

State = Literal["ok", "absent", "warning", "broken"]

REQUIRED = ("torch", "transformers", "peft", "tokenizers", "sentencepiece", "safetensors", "PIL")
OPTIONAL = {
    "simplejpeg": "fast",
    "av": "video",
    "tensorboard": "train",
    "matplotlib": "train",
    "bitsandbytes": "quant",
}
"""Import name -> the extra that installs it."""
DISTRIBUTION = {"PIL": "pillow"}

app = verb()


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    state: State
    detail: str


@app.command(epilog=examples("retinue doctor", "retinue doctor --device cpu --json"))
def doctor(device: Device = "auto", as_json: AsJson = False) -> None:
    """Report on Python, torch, devices, optional packages, disk and cache; 4 if broken."""
    findings = examine(device)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(findings, header=("what", "state", "detail"))
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(4)


def examine(device: str = "auto") -> list[Finding]:
    """All findings, in the order of the report. Raises EnvError if `device` is not there."""
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")]
    findings += [package(name) for name in REQUIRED]
    if all(finding.state == "ok" for finding in findings):
        findings += compute(device)
    findings += [package(name, extra=extra) for name, extra in OPTIONAL.items()]
    return [*findings, quants(), torchvision(), *disk(cache_dir())]


def package(name: str, *, extra: str | None = None) -> Finding:
    """Whether a package is there and really imports; a broken one breaks transformers too."""
    from retinue.model.quant.bnb import hush

    hush()
    if importlib.util.find_spec(name) is None:
        if extra is None:
            return Finding(name, "broken", "not installed, but required")
        return Finding(name, "absent", f"pip install 'retinue[{extra}]' brings it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except Exception as error:  # whatever a package does at import is what is reported
        text = f"{type(error).__name__}: {error}"
        return Finding(name, "broken", f"installed, but its import fails: {text:.200}")
    try:
        return Finding(name, "ok", version(DISTRIBUTION.get(name, name)))
    except PackageNotFoundError:
        return Finding(name, "ok", "version unknown")


def compute(device: str) -> list[Finding]:
    """Threads, the device that would be chosen and why, the forms of the operations."""
    from retinue.ops.backend import pick_device, report

    chosen, reason = pick_device(device)
    rows = {name: text for name, text in report().items() if name not in ("torch", "device")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("device", "ok", f"{chosen} for --device {device}: {reason}"),
        Finding("cores", "ok", str(cores)),
        *(Finding(name, "ok", text) for name, text in rows.items()),
    ]


def quants() -> Finding:
    """Which kinds of --quant work here, and why the others do not."""
    from retinue.core.errors import EnvError
    from retinue.model.quant import QUANTS

    usable, lacking = [], []
    for name in QUANTS:
        try:
            QUANTS.get(name).require()  # type: ignore[attr-defined]
            usable.append(name)
        except (EnvError, ImportError) as error:
            lacking.append(f"{name}: {error}")
    return Finding("--quant", "ok", "; ".join([", ".join(usable), *lacking]))


def torchvision() -> Finding:
    """retinue does without torchvision; one that does not match torch breaks transformers."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "absent, as it should be")
    why = "not needed; transformers imports it if it is there, and fails where it misfits torch"
    return Finding("torchvision", "warning", f"{why}; pip uninstall torchvision")


def disk(cache: Path) -> list[Finding]:
    """Free space where one works, and whether the cache can be written."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    low: State = "warning" if free < 5 else "ok"
    findings = [Finding("disk", low, f"{free:.1f} GiB free in {Path.cwd()}")]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        fix = "set RETINUE_CACHE to a folder that can be written"
        return [*findings, Finding("cache", "warning", f"{cache}: {error.strerror}; {fix}")]
    return [*findings, Finding("cache", "ok", f"{cache} can be written")]
