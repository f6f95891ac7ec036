"""Every registered name imports, has its Spec beside it, and says where it comes from."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import retinue
from retinue.cli.ls import FAMILIES, listing, load
from retinue.core.registry import Registry
from retinue.core.spec import Spec

SRC = Path(retinue.__file__).parent
SEAMS = {"encoders", "connectors", "layouts", "fusions"}
SOURCED = {*SEAMS, "templates", "scorers"}
SOURCE = re.compile(
    r"arXiv\s+\d{4}\.\d{4,5}|https?://|[\w-]+/LLaVA|cocodataset\.org|"
    r"convention of transformers|[Oo]ur own"
)
ENTRIES = [
    (family, name)
    for family, place in FAMILIES.items()
    if isinstance(load(place), Registry)
    for name in load(place).names()
]


def test_ls_knows_every_registry():
    """A `Registry(...)` made anywhere in the package is a family of `retinue ls`."""
    made = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Registry":
                made.add(path.relative_to(SRC.parent).with_suffix("").as_posix().replace("/", "."))
    modules = {place.partition(":")[0] for place in FAMILIES.values()}
    assert {name.removesuffix(".__init__") for name in made} <= modules


@pytest.mark.parametrize(("family", "name"), ENTRIES, ids=lambda value: value)
def test_entry_imports_and_has_documentation(family, name):
    registry = load(FAMILIES[family])
    value = registry.get(name)
    assert value is not None
    line = registry.describe(name)
    assert line, f"{family} {name} has no docstring where `ls` looks"
    assert line.endswith((".", "?")), f"{line!r} is no sentence"


@pytest.mark.parametrize(
    ("family", "name"), [e for e in ENTRIES if e[0] in SEAMS], ids=lambda value: value
)
def test_seam_has_a_spec_that_knows_its_kind(family, name):
    value = load(FAMILIES[family]).get(name)
    assert issubclass(value.Spec, Spec)
    field = value.Spec.model_fields["kind"]
    assert field.default == name or name in getattr(field.annotation, "__args__", ())


@pytest.mark.parametrize(
    ("family", "name"), [e for e in ENTRIES if e[0] in SOURCED], ids=lambda value: value
)
def test_entry_names_its_source(family, name):
    """A paper, a public repository or site, or that it is our own."""
    value = load(FAMILIES[family]).get(name)
    own = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    documented = [own.__doc__ or ""]
    if not inspect.isfunction(own):  # a file of scorers has one heading for all
        documented.append(importlib.import_module(own.__module__).__doc__ or "")
    assert any(SOURCE.search(text) for text in documented), f"{family} {name}: where is it from?"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_lists(family):
    names = listing(family)
    assert names
    assert all(names.values()), f"without a line: {[n for n, line in names.items() if not line]}"
