"""Small files written whole, and what was installed when they were."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from retinue.core.errors import of_os

PACKAGES = ("retinue", "torch", "transformers", "peft", "safetensors", "tokenizers", "pillow")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or a wrong path into one clear line. Raises EnvError or ConfigError."""
    try:
        yield
    except OSError as error:
        raise of_os(error, where=str(path)) from error


def write_json(path: Path, data: Any, *, default: Callable[[Any], Any] | None = None) -> None:
    """Write indented JSON so that readers see the old file or the new one, never half of one.

    default: what becomes of values that JSON has no form for, as in `json.dumps`. Raises EnvError
    where the disk refuses, ConfigError where the path cannot be one.
    """
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(data, indent=2, ensure_ascii=False, default=default) + "\n"
    try:
        with writing(path):
            partial.write_text(text, "utf-8")
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Python, and the packages that decide what the numbers are."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
