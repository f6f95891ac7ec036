"""Reading ModelZoo's configs field by field: each one is mapped, known to change nothing, or named.

Reference: Cerebras ModelZoo 2.3 and 2.10 (fields and defaults of ViTModel, LlamaModel,
FeedForwardNetwork and multimodal_simple).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retinue.core.errors import CheckpointError
from retinue.core.registry import nearest

INITIALIZERS = ("initializer", "initializer_range", "initializer_type")
"""Endings of fields that only decide fresh weights."""


class Fields:
    """One section of a config. What was never asked for is refused by `done`, by its name."""

    def __init__(self, data: Any, *, where: str) -> None:
        if not isinstance(data, Mapping):
            raise CheckpointError("is no mapping", where=where, rule="a section has fields")
        self.data, self.where = dict(data), where
        self.seen: set[str] = set()

    def take(self, name: str, default: Any = None, *, aliases: tuple[str, ...] = ()) -> Any:
        """A field's value; null counts as absent."""
        found = default
        for key in (name, *aliases):
            self.seen.add(key)
            if self.data.get(key) is not None:
                found = self.data[key]
        return found

    def need(self, name: str) -> Any:
        """A field that must be there."""
        found = self.take(name)
        if found is None:
            raise CheckpointError(f"{name} is missing", where=self.where)
        return found

    def only(self, name: str, default: Any, *allowed: Any, why: str = "") -> Any:
        """A field that has one meaning here. Raises CheckpointError for another value."""
        found = self.take(name, default)
        choices = allowed or (default,)
        if found not in choices:
            raise CheckpointError(
                f"{name}: {found!r}",
                where=self.where,
                rule=why or f"supported: {', '.join(map(repr, choices))}",
            )
        return found

    def skip(self, *names: str) -> None:
        """Fields that change no output."""
        self.seen.update(names)

    def done(self) -> None:
        """Raises CheckpointError for a field that nothing speaks of."""
        for name in self.data:
            if name not in self.seen and not name.endswith(INITIALIZERS):
                hint = nearest(name, sorted(self.seen))
                raise CheckpointError(
                    f"unknown field {name!r}" + (f"; did you mean {hint!r}?" if hint else ""),
                    where=self.where,
                    rule="every field is mapped or refused",
                )
