"""Name -> class tables: values are strings, imported on first use.

Third parties join by entry point.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from retinue.core.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str | None:
    """The known name closest to a misspelt one, or None."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


class Registry(Generic[T]):
    """One family of named classes: a literal table and the entry points `retinue.<family>s`."""

    def __init__(self, family: str, table: Mapping[str, str]) -> None:
        self.family = family
        self._literal = dict(table)

    @cached_property
    def _table(self) -> dict[str, str]:
        table, owner = dict(self._literal), dict.fromkeys(self._literal, "retinue")
        for point in entry_points(group=f"retinue.{self.family}s"):
            package = point.dist.name if point.dist else "?"
            if point.name in table:
                raise ConfigError(
                    f"{self.family} {point.name!r} is offered by both {owner[point.name]} "
                    f"and {package}",
                    rule="a name belongs to one package",
                    fix=f"uninstall one, or rename the entry point in {package}",
                )
            table[point.name], owner[point.name] = point.value, package
        return table

    def names(self) -> list[str]:
        return sorted(self._table)

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> T:
        """Import and return what `name` stands for. Raises ConfigError with the nearest name."""
        if name not in self._table:
            raise ConfigError(self.unknown(name))
        module, _, attribute = self._table[name].partition(":")
        value: T = getattr(importlib.import_module(module), attribute)
        return value

    def unknown(self, name: str) -> str:
        hint = nearest(name, self.names())
        ask = f"did you mean {hint!r}? " if hint else ""
        return f"unknown {self.family} {name!r}; {ask}(known: {', '.join(self.names())})"

    def describe(self, name: str) -> str:
        """First docstring line of an entry, read from its source without importing it."""
        module, _, attribute = self._table[name].partition(":")
        spec = importlib.util.find_spec(module.rpartition(".")[0])
        if spec is None or not spec.submodule_search_locations:
            return ""
        path = Path(next(iter(spec.submodule_search_locations))) / f"{module.rpartition('.')[2]}.py"
        if not path.exists():
            return ""
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
                return (ast.get_docstring(node) or "").partition("\n")[0]
        return (ast.get_docstring(tree) or "").partition("\n")[0]  # a value: its module's line

    def spec_of(self, data: Any) -> Any:
        """Turn `{"kind": name, ...}` into the Spec of the class that `name` stands for.

        Used as a pydantic before-validator; a Spec instance passes through.
        """
        if not isinstance(data, Mapping):
            return data
        if "kind" not in data:
            raise ValueError(f"a {self.family} needs 'kind' (known: {', '.join(self.names())})")
        name = str(data["kind"])
        if name not in self._table:
            raise ValueError(self.unknown(name))
        spec: Any = self.get(name)
        return spec.Spec.model_validate(dict(data))
