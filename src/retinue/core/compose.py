"""Recipes: YAML files that include others, and dotted overrides, joined into one plain tree.

Order: default < include < file < override. Mappings are merged key by key, except that a mapping
with another `kind` replaces the old one whole; everything else replaces. Every value remembers
where it was set: `Tree.origin("train.stages.sft.optim.lr")`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from retinue.core.errors import ConfigError
from retinue.core.paths import find_recipe
from retinue.core.registry import nearest
from retinue.core.yamlio import Dumper, load_yaml, parse_value

Layer = Literal["default", "include", "file", "override"]
Key = str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which layer set a value, and the place: `recipe.yaml:12`, or the override as typed."""

    layer: Layer
    place: str = ""

    def __str__(self) -> str:
        return f"{self.layer} {self.place}".rstrip()


@dataclass(slots=True, kw_only=True)
class Tree:
    """A composed recipe: `data` is plain, `origins` maps the path of each leaf to its Origin."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[Key, ...], Origin] = field(default_factory=dict)

    def origin(self, path: str) -> Origin:
        """Where the value at a dotted path was set; of a mapping, its last-set part."""
        keys = tuple(resolve(self.data, split_path(path), where=path))
        if keys in self.origins:
            return self.origins[keys]
        below = [o for key, o in self.origins.items() if key[: len(keys)] == keys]
        return below[-1] if below else Origin(layer="default")

    def dump(self, *, origins: bool = False) -> str:
        """The tree as YAML that composes to the same tree; with each leaf's origin on request."""
        if not origins:
            return _dump(self.data)
        rows = [
            (join_path(path), value, self.origin(join_path(path)))
            for path, value in leaves(self.data)
        ]
        return "".join(f"{path}={flow(value)}  # {origin}\n" for path, value, origin in rows)


def compose(
    recipe: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    aliases: Mapping[str, str] | None = None,
) -> Tree:
    """Read a recipe (file or name of a packaged one) and apply `path=value` overrides.

    aliases: first path segment -> the path it stands for (`stages` -> `train.stages`). Raises
    ConfigError for a missing file, broken YAML (with its line), an include cycle, a path that does
    not exist in a list.
    """
    tree = Tree()
    if recipe is not None:
        _read(tree, find_recipe(str(recipe)), layer="file", seen=())
    for text in overrides:
        _override(tree, text, aliases or {})
    return tree


def diff(old: Tree, new: Tree) -> list[tuple[str, Any, Any]]:
    """Leaves that differ: (path, old value, new value); a missing side is the word 'absent'."""
    before, after = dict(leaves(old.data)), dict(leaves(new.data))
    return [
        (join_path(path), before.get(path, "absent"), after.get(path, "absent"))
        for path in dict.fromkeys([*before, *after])
        if (path in before) != (path in after) or before.get(path) != after.get(path)
    ]


# ---------------------------------------------------------------- files


def _read(tree: Tree, path: Path, *, layer: Layer, seen: tuple[Path, ...]) -> None:
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(step.name for step in (*seen, path))
        raise ConfigError("include: goes in a circle", where=str(path), rule=chain)
    data, lines = load_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError("a recipe must be a mapping", where=str(path), fix="start it with model:")
    included = data.pop("include", None) or []
    for name in [included] if isinstance(included, str) else included:
        _read(tree, _included(str(name), path), layer="include", seen=(*seen, path))
    place = {keys: Origin(layer=layer, place=f"{path.name}:{line}") for keys, line in lines.items()}
    merge(tree, data, place, ())


def _included(name: str, parent: Path) -> Path:
    if name.startswith("recipe:"):
        return find_recipe(name)
    path = parent.parent / name
    if not path.is_file():
        raise ConfigError(
            f"include: {name} does not exist",
            where=str(parent),
            rule="a path relative to this file, or recipe:NAME",
        )
    return path


def merge(
    tree: Tree,
    overlay: Mapping[str, Any],
    place: Mapping[tuple[Key, ...], Origin],
    base: tuple[Key, ...],
) -> None:
    """Lay `overlay` over the tree at path `base`; `place` knows the origin of each overlay path."""
    _merge(tree, tree.data, overlay, (), base, place)


def _merge(
    tree: Tree,
    into: Any,
    overlay: Mapping[Any, Any],
    keys: tuple[Key, ...],
    base: tuple[Key, ...],
    place: Mapping[tuple[Key, ...], Origin],
) -> None:
    for name, value in overlay.items():
        here: tuple[Key, ...] = (*keys, name)
        if isinstance(into, list):  # `stages: {sft: ...}` laid over a list of named stages
            target = list_index(into, name, where=join_path((*base, *here)))
        else:
            target = name
        path = (*base, *_real(tree, base, keys), target)
        current = into[target] if isinstance(into, list) else into.get(target)
        if isinstance(value, Mapping) and _mergeable(current, value):
            _merge(tree, current, value, here, base, place)
        else:
            into[target] = copy.deepcopy(value)
            _forget(tree, path)
            for leaf, _ in leaves(value):
                tree.origins[(*path, *leaf)] = place[(*here, *leaf)]


def _real(tree: Tree, base: tuple[Key, ...], keys: tuple[Key, ...]) -> tuple[Key, ...]:
    """Overlay keys as they stand in the tree: names of list items become their indices."""
    return tuple(resolve(tree.data, (*base, *keys), where="include"))[len(base) :]


def _mergeable(current: Any, value: Mapping[str, Any]) -> bool:
    if isinstance(current, list):
        return bool(current) and all(isinstance(i, Mapping) and "name" in i for i in current)
    if not isinstance(current, Mapping):
        return False
    return "kind" not in value or value["kind"] == current.get("kind", value["kind"])


def _forget(tree: Tree, path: tuple[Key, ...]) -> None:
    for key in [key for key in tree.origins if key[: len(path)] == path]:
        del tree.origins[key]


# ---------------------------------------------------------------- overrides


def _override(tree: Tree, text: str, aliases: Mapping[str, str]) -> None:
    name, sign, raw = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"{text!r} is no override", rule="an override reads path=value")
    keys = split_path(name.strip())
    if keys and keys[0] in aliases and keys[0] not in tree.data:
        keys = [*split_path(aliases[str(keys[0])]), *keys[1:]]
    *parents, last = keys
    value = parse_value(raw, where=text)
    current: Any = tree.data
    path: list[Key] = []
    for key in parents:
        target = _step(current, key, where=text)
        if isinstance(current, dict) and not isinstance(current.get(target), dict | list):
            current[target] = {}  # a section that no file has opened, or a plain value replaced
            _forget(tree, (*path, target))
        current = current[target]
        path.append(target)
    target = _step(current, last, where=text)
    current[target] = value
    path.append(target)
    _forget(tree, tuple(path))
    for leaf, _ in leaves(value):
        tree.origins[(*path, *leaf)] = Origin(layer="override", place=text)


def _step(current: Any, key: Key, *, where: str) -> Key:
    if isinstance(current, list):
        return list_index(current, key, where=where)
    return str(key)


def list_index(items: Sequence[Any], key: Key, *, where: str) -> int:
    """Index of a list item named by number or by its `name`. Raises ConfigError."""
    text = str(key)
    if text.lstrip("-").isdigit():
        index = int(text)
        if not -len(items) <= index < len(items):
            raise ConfigError(
                f"there is no item {index}", where=where, rule=f"the list has {len(items)}"
            )
        return index % len(items)
    names = [str(i["name"]) for i in items if isinstance(i, Mapping) and "name" in i]
    if text not in names:
        hint = nearest(text, names)
        raise ConfigError(
            f"no item is named {text!r}" + (f"; did you mean {hint!r}?" if hint else ""),
            where=where,
            rule=f"names: {', '.join(names) or 'none'}; or a number below {len(items)}",
        )
    return next(n for n, i in enumerate(items) if isinstance(i, Mapping) and i.get("name") == text)


# ---------------------------------------------------------------- paths and leaves


def split_path(text: str) -> list[Key]:
    """`a.0."b.**".c` -> ["a", "0", "b.**", "c"]: dots inside double quotes do not split."""
    keys: list[Key] = []
    for n, part in enumerate(text.split('"')):
        if n % 2:
            keys.append(part)
        else:
            keys += [key for key in part.split(".") if key]
    return keys


def join_path(keys: Sequence[Key]) -> str:
    """The inverse of split_path."""
    return ".".join(f'"{key}"' if "." in str(key) else str(key) for key in keys)


def resolve(data: Any, keys: Sequence[Key], *, where: str) -> Iterator[Key]:
    """The keys as they stand in `data`: names and digits of list items become indices."""
    for key in keys:
        if isinstance(data, list):
            key = list_index(data, key, where=where)
            data = data[key]
        else:
            data = data.get(key) if isinstance(data, Mapping) else None
        yield key


def leaves(value: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Any]]:
    """(path, value) of everything that is no mapping and no list of mappings; empty ones count."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def flow(value: Any) -> str:
    """A value as one line of YAML, such as an override takes."""
    text = _dump(value, default_flow_style=True, width=10**9)
    return text.strip().removesuffix("...").strip()


def _dump(value: Any, **style: Any) -> str:
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **style)
    if any(char in text for char in "\x85\u2028\u2029"):  # written raw, they would read as breaks
        text = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=False, **style)
    return text
