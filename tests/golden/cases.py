"""Where golden cases live and which of them a test has compared.

`RETINUE_GOLDEN=<folder>` replaces the root; a root holds `<system>/<case>/`. Tests find their cases
by kind (`cases("m3-llava", "llava15-core*")`), never by a fixed path, and call `compared(case)`
after comparing an output of it: a case that nobody compared fails the run (see conftest).
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("RETINUE_GOLDEN", HERE)).resolve()
SHARED_INPUTS = ("images*", "tokenizer*")

_compared: set[str] = set()


def systems() -> list[str]:
    """Systems of the root, only the one in RETINUE_GOLDEN_SYSTEM if that is set."""
    only = os.environ.get("RETINUE_GOLDEN_SYSTEM")
    found = sorted(
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("_")
    )
    return [name for name in found if only in (None, "", name)]


def all_cases(system: str) -> list[Path]:
    """Every case folder of a system; shared input folders are no cases."""
    return [
        path
        for path in sorted((ROOT / system).iterdir())
        if path.is_dir() and not any(fnmatch.fnmatch(path.name, p) for p in SHARED_INPUTS)
    ]


def cases(system: str, *patterns: str, having: str | None = None) -> list[Path]:
    """Case folders whose name matches a pattern and that hold the file or folder `having`."""
    if system not in systems():
        return []
    return [
        path
        for path in all_cases(system)
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
        and (having is None or (path / having).exists())
    ]


def compared(case: Path) -> None:
    """Say that an output of this case was compared with ours."""
    path = os.environ.get("RETINUE_GOLDEN_LEDGER")
    if path:
        with open(path, "a", encoding="utf-8") as ledger:
            ledger.write(f"{case.resolve()}\n")
    _compared.add(str(case.resolve()))
