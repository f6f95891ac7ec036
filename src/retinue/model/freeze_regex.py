"""Freezing by regular expressions over module and parameter names, as ModelZoo's `freeze` means it.

Each expression is searched for in the names of leaf modules, which are frozen whole, and in the
names of parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from retinue.core.errors import ConfigError


def frozen_by(
    patterns: Sequence[str],
    *,
    parameters: Iterable[str],
    modules: Iterable[str],
    exact: bool = False,
) -> set[str]:
    """Names of the parameters that the expressions freeze; modules: the leaf modules' names.

    Raises ConfigError for an expression that finds nothing; exact: also for one that finds
    parameters but no module, as the original does.
    """
    parameters, modules = list(parameters), list(modules)
    frozen: set[str] = set()
    for pattern in patterns:
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{pattern!r} is no regular expression: {error}", where="freeze"
            ) from None
        whole = [name for name in modules if wanted.search(name)]
        single = [name for name in parameters if wanted.search(name)]
        if not whole and (exact or not single):
            raise ConfigError(
                f"{pattern!r} did not match any module names",
                where="freeze",
                rule=f"names are such as {', '.join(modules[:3])}",
            )
        frozen.update(single)
        under = tuple(f"{name}." for name in whole)
        frozen.update(name for name in parameters if name.startswith(under))
    return frozen


def rules_of(names: Sequence[str], frozen: set[str]) -> dict[str, str]:
    """`trainable:` rules of names: few patterns that say what is full; the rest rests."""
    rules: dict[str, str] = {}

    def walk(prefix: str, below: Sequence[str]) -> None:
        free = [name for name in below if name not in frozen]
        if not free:
            return
        if len(free) == len(below):
            rules[f"{prefix}.**" if prefix and below != [prefix] else prefix or "**"] = "full"
            return
        depth = prefix.count(".") + 1 if prefix else 0
        heads: dict[str, list[str]] = {}
        for name in below:
            heads.setdefault(".".join(name.split(".")[: depth + 1]), []).append(name)
        for head, members in heads.items():
            walk(head, members)

    walk("", list(names))
    return rules
