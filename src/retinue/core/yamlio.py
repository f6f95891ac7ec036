"""YAML as people expect it: 2e-5 is a number, `off` is text, keys are unique, lines are known."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from retinue.core.errors import ConfigError

Lines = dict[tuple[str | int, ...], int]
"""Path of every value -> its line, counted from 1."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 (PyYAML reads 1.1: 2e-5 text, `off` a boolean)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in ("bool", "float")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
FLOAT: Any = (
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(*FLOAT)


class Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or this reader would take for something else, such as 0E0."""


Dumper.add_implicit_resolver(*FLOAT)


def load_yaml(path: Path) -> tuple[Any, Lines]:
    """Plain data of a YAML file and the line of each value. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot be read", where=str(path), rule=str(error)) from None
    lines: Lines = {}
    return _parse(text, where=str(path), lines=lines), lines


def parse_value(text: str, *, where: str) -> Any:
    """One YAML value, as an override carries it; nothing at all is null."""
    return _parse(text, where=where, lines={})


def _parse(text: str, *, where: str, lines: Lines) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _build(loader, node, (), where, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"bad YAML: {problem}", where=place) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"bad YAML: {error}", where=where) from None
    finally:
        loader.dispose()


def _build(
    loader: _Loader, node: yaml.Node, path: tuple[str | int, ...], where: str, lines: Lines
) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*path, n), where, lines) for n, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    seen: set[Hashable] = set()
    for key_node, _ in node.value:  # before `<<` is expanded: a repeated merge is no repetition
        key = key_node.value
        if key in seen:
            raise ConfigError(
                f"key {key!r} stands twice", where=f"{where}:{key_node.start_mark.line + 1}"
            )
        seen.add(key)
    loader.flatten_mapping(node)
    data = {}
    for key_node, value in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        data[key] = _build(loader, value, (*path, key), where, lines)
    return data
