"""LoRA adapters of one model, of which each request picks one or none.

They stay unmerged side by side. Rows of one adapter go through the layers together, and between two
such groups the layers are told which factors count. All methods run in the engine's thread, but
for `get`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from retinue.core.errors import RequestError
from retinue.model.adapters import adapter_names, drop_adapter, only_adapters
from retinue.model.retinue import Retinue

Put = Callable[[Retinue, str], None]
"""Puts an adapter into the model under a name of ours."""

VISUAL = ("encoders.", "connector.", "layout.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """key: its name inside the model, never used twice; folder: where it came from.

    seen: whether pictures look different through it.
    """

    key: str
    folder: str
    seen: bool

    @property
    def mark(self) -> bytes:
        """What tells its keys and values from those of others."""
        return f"|{self.key}".encode()


class Adapters:
    """Adapters by the names that requests use; "" is the model without any of them."""

    def __init__(self, model: Retinue) -> None:
        self.model = model
        self.always = adapter_names(model)
        self.held: dict[str, Adapter] = {}
        self.numbers = itertools.count(1)
        self.active = ""

    def get(self, name: str) -> Adapter | None:
        """None for the model itself. Raises RequestError for a name that is not loaded."""
        if not name:
            return None
        found = self.held.get(name)
        if found is None:
            raise RequestError(
                f"no adapter {name!r:.80} is loaded",
                where="adapter",
                rule=f"loaded: {', '.join(self.held) or 'none'}",
            )
        return found

    def add(self, name: str, put: Put, *, folder: str = "") -> None:
        """Load one. Raises RequestError where the name is taken, CheckpointError for a misfit."""
        if name in self.held or not name:
            raise RequestError(f"the adapter {name!r:.80} is loaded already", where="adapter")
        key = f"asked{next(self.numbers)}"
        try:
            put(self.model, key)
        except BaseException:
            drop_adapter(self.model, key)
            raise
        finally:
            self.active = "?"  # injecting makes the newest one count
            self.activate("")
        touched = adapter_layers(self.model, key)
        seen = any(layer.startswith(VISUAL) for layer in touched)
        self.held[name] = Adapter(key=key, folder=folder, seen=seen)

    def remove(self, name: str) -> None:
        """Forget one. Raises RequestError where it is not loaded."""
        found = self.get(name)
        if found is None:
            raise RequestError("the model itself cannot be unloaded as an adapter", where="adapter")
        self.activate("")
        drop_adapter(self.model, found.key)
        del self.held[name]

    def activate(self, name: str) -> None:
        """From now on the model computes with this adapter."""
        if name == self.active:
            return
        found = self.get(name)
        only_adapters(self.model, [*self.always, *([found.key] if found else [])])
        self.active = name


def adapter_layers(model: Retinue, key: str) -> list[str]:
    """Names of the layers that an adapter changes."""
    mark = f".lora_A.{key}."
    return [name.partition(mark)[0] for name, _ in model.named_parameters() if mark in name]
