"""Optional packages: imported when first needed, with the install command in the error."""

from __future__ import annotations

import importlib
from types import ModuleType

from retinue.core.errors import EnvError


def need(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import `module` or raise EnvError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which cannot be imported",
            rule=str(error),
            fix=f"pip install 'retinue[{extra}]'",
        ) from error
