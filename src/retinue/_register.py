"""`import retinue` makes transformers' auto classes know our folders, and imports neither of them.

A finder at the head of `sys.meta_path` notices when transformers or retinue modules are imported.
As soon as the outermost of such imports has ended, what can be registered is: a registration waits
for transformers' auto module to be loaded by somebody. Doing it right at the auto module's own end
would be too early: it may be loaded from the middle of `transformers.generation`, which our model
needs whole.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto"
WATCHED = ("transformers", "retinue")


def _config() -> None:
    from transformers import AutoConfig

    from retinue.model.spec import RetinueConfig

    AutoConfig.register(RetinueConfig.model_type, RetinueConfig, exist_ok=True)


def _model() -> None:
    from transformers import AutoModelForImageTextToText

    from retinue.model.retinue import Retinue
    from retinue.model.spec import RetinueConfig

    AutoModelForImageTextToText.register(RetinueConfig, Retinue, exist_ok=True)


def _processor() -> None:
    from transformers import AutoProcessor

    from retinue.model.spec import RetinueConfig
    from retinue.processor import Processor

    AutoProcessor.register(RetinueConfig, Processor, exist_ok=True)


_waiting: dict[str, Callable[[], None]] = {
    f"{AUTO}.configuration_auto": _config,
    f"{AUTO}.modeling_auto": _model,
    f"{AUTO}.processing_auto": _processor,
}
"""transformers' module -> what to do once it is loaded; an entry leaves when it is done."""

_depth = 0


def settle() -> None:
    """Register what is due; does nothing inside an import of transformers or retinue."""
    for name in [name for name in _waiting if _depth == 0 and name in sys.modules]:
        register = _waiting.pop(name, None)
        if register is not None:  # an import made by an earlier one may have settled this
            register()
    if not _waiting and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


def watch(loader: Any) -> None:
    """Count the import that this loader will do; it stays what it is for those who inspect it."""
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        global _depth
        del loader.exec_module
        _depth += 1
        try:
            run(module)
        finally:
            _depth -= 1
        # The import system still calls the module unfinished, yet all its names are there.
        settle()

    loader.exec_module = exec_module


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The usual spec with a watched loader, for modules of transformers and retinue."""
        if path is None or name.partition(".")[0] not in WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            watch(spec.loader)
        return spec


_finder = _Finder()


def install() -> None:
    """Watch imports from now on; register at once where transformers is loaded already."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if all(name not in sys.modules for name in _waiting):
        return
    # Not inside our own package's import: its names must be importable for the registrations.
    importlib.import_module("retinue.core")
    settle()
