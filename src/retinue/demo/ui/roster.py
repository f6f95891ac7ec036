"""Models that come and go: what the page offers, and what becomes of a choice that has gone."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from retinue.core.errors import EnvError
from retinue.demo.ui.client import Model, Server

NOBODY = "(nobody)"
SPACING_S = 2.0


@dataclass(slots=True, kw_only=True)
class Roster:
    """The models that a server was seen with last.

    All visitors of a page share one look in `spacing` seconds. A server that does not answer
    keeps the models it had: what is wrong with it is said to whoever asks a question.
    """

    server: Server
    models: list[Model]
    spacing: float = SPACING_S
    seen: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> list[str]:
        """Names of the models, the default first."""
        if time.monotonic() - self.seen >= self.spacing and self.lock.acquire(blocking=False):
            try:
                with contextlib.suppress(EnvError):
                    self.models = self.server.models()
                self.seen = time.monotonic()
            finally:
                self.lock.release()
        return self.names

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.models]

    def budgets(self, name: str | None) -> tuple[int, ...]:
        """Visual tokens per view that a model can be asked for; none of an unknown one."""
        return next((model.budgets for model in self.models if model.name == name), ())

    def opened(self, model: str | None, other: str, shown: list[str]) -> tuple[Any, Any, Any]:
        """`changed` for a page that has just been opened: nobody chose what has gone."""
        return self.changed(model, other, shown, quiet=True)

    def changed(
        self, model: str | None, other: str, shown: list[str], *, quiet: bool = False
    ) -> tuple[Any, Any, Any]:
        """Updates of both lists and of the names they show; choices that still exist stay."""
        names = self.look()
        if names == shown:
            return gr.skip(), gr.skip(), gr.skip()
        # a value only where it must change: the visitor may be choosing another one right now
        first, second = gr.update(choices=names), gr.update(choices=[NOBODY, *names])
        if model not in names:
            first["value"] = names[0] if names else None
            if model is not None and not quiet:
                gr.Warning(gone(model, first["value"]))
        if other != NOBODY and other not in names:
            second["value"] = NOBODY
            if not quiet:
                gr.Warning(gone(other, None))
        return first, second, names


def gone(name: str, instead: str | None) -> str:
    """The note about a chosen model that is there no more."""
    return f"{name} is gone" + (f"; {instead} answers from now on." if instead else ".")
