"""Invertible rules between foreign parameter names and ours, and the account of what they covered.

A pattern is a literal name with `{holes}`: `{n:int}` stands for digits, any other hole for one or
more characters. The template names the same holes, so that a rule reads in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

HOLE = re.compile(r"\{(\w+)(:int)?\}")

IGNORABLE = ("{_}rotary_emb.inv_freq", "rotary_emb.inv_freq", "{_}.position_ids", "{_}.masked_bias")
"""Buffers that old files carry and that are computed from the config: never an error."""


@dataclass(frozen=True, slots=True)
class Op:
    """A change of a tensor's values that goes with a rename, and its exact inverse."""

    apply: Callable[[Any], Any]
    invert: Callable[[Any], Any]


@dataclass(frozen=True)
class Rule:
    """`pattern` (foreign) <-> `template` (ours); `op` changes the tensor on the way in.

    written: False for a spelling that is understood but never produced; it may lose holes.
    """

    pattern: str
    template: str
    op: Op | None = None
    written: bool = True

    def __post_init__(self) -> None:
        lost = _holes(self.pattern) - _holes(self.template)
        assert not _holes(self.template) - _holes(self.pattern), f"{self} invents a hole"
        assert not (lost and self.written), f"{self} loses {lost}"

    @cached_property
    def _forward(self) -> re.Pattern[str]:
        return _compile(self.pattern)

    @cached_property
    def _backward(self) -> re.Pattern[str]:
        return _compile(self.template)

    def forward(self, key: str) -> str | None:
        """Our name of a foreign key, None where the rule does not apply."""
        return _rewrite(self._forward, self.template, key)

    def backward(self, key: str) -> str | None:
        """The foreign name of one of our keys, None where the rule does not apply."""
        return _rewrite(self._backward, self.pattern, key) if self.written else None


def _holes(text: str) -> set[str]:
    return {name for name, _ in HOLE.findall(text)}


def _compile(text: str) -> re.Pattern[str]:
    parts, last = [], 0
    for hole in HOLE.finditer(text):
        parts.append(re.escape(text[last : hole.start()]))
        parts.append(f"(?P<{hole[1]}>{'[0-9]+' if hole[2] else '.+'})")
        last = hole.end()
    return re.compile("".join(parts) + re.escape(text[last:]))


def _rewrite(pattern: re.Pattern[str], template: str, key: str) -> str | None:
    found = pattern.fullmatch(key)
    return HOLE.sub(lambda hole: str(found[hole[1]]), template) if found else None


@dataclass(frozen=True)
class KeyMap:
    """Rules in order: the first that matches decides, in either direction.

    Where several foreign spellings mean one of our names (CLIP with and without `vision_model.`),
    the rule listed first is the spelling that `from_retinue` writes.
    """

    rules: Sequence[Rule]
    ignorable: Sequence[str] = IGNORABLE

    @cached_property
    def _ignorable(self) -> list[re.Pattern[str]]:
        return [_compile(text) for text in self.ignorable]

    def to_retinue(self, key: str) -> str | None:
        """Our name of a foreign key; None if no rule speaks of it."""
        found = self.match(key)
        return found[0] if found else None

    def match(self, key: str) -> tuple[str, Rule] | None:
        """Our name of a foreign key with the rule that gave it."""
        for rule in self.rules:
            name = rule.forward(key)
            if name is not None:
                return name, rule
        return None

    def from_retinue(self, key: str) -> str | None:
        """The foreign name of one of ours; None if the foreign format has no place for it."""
        found = self.match_back(key)
        return found[0] if found else None

    def match_back(self, key: str) -> tuple[str, Rule] | None:
        """The foreign name of one of our keys with the rule that gave it."""
        for rule in self.rules:
            name = rule.backward(key)
            if name is not None:
                return name, rule
        return None

    def under(self, prefix: str) -> KeyMap:
        """The same rules for foreign keys that carry a prefix."""
        rules = [Rule(prefix + r.pattern, r.template, r.op, r.written) for r in self.rules]
        return KeyMap(rules, ignorable=[prefix + text for text in self.ignorable])

    def ignores(self, key: str) -> bool:
        """Whether a foreign key may be dropped without a word."""
        return any(pattern.fullmatch(key) for pattern in self._ignorable)


@dataclass(slots=True)
class Coverage:
    """What became of every key: used, ignored (named as ignorable), unused, missing.

    sources: group -> where its weights came from; renamed foreign keys stand in `used`.
    """

    used: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the keys, keep the sources: for another pass over the same files."""
        for names in (self.used, self.ignored, self.unused, self.missing):
            names.clear()

    @property
    def complete(self) -> bool:
        """Every tensor was used and none is missing."""
        return not self.unused and not self.missing

    def __str__(self) -> str:
        lines = [f"{group}: {source}" for group, source in self.sources.items()]
        lines.append(
            f"keys: {len(self.used)} used, {len(self.unused)} unused, {len(self.missing)} missing, "
            f"{len(self.ignored)} ignorable"
        )
        lines += [f"  unused  {name}" for name in shorten(self.unused)]
        lines += [f"  missing {name}" for name in shorten(self.missing)]
        return "\n".join(lines)


def shorten(names: Iterable[str], *, limit: int = 12) -> list[str]:
    """The first names, and how many more there are."""
    listed = list(names)
    more = [f"... and {len(listed) - limit} more"] if len(listed) > limit else []
    return listed[:limit] + more
