"""Imports point down the floors; packages of one floor never import each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import retinue

SRC = Path(retinue.__file__).parent

FLOORS = [
    {"core"},
    {"types", "media", "text", "ops"},
    {"model"},
    {"processor", "parallel", "convert"},
    {"hub", "data", "decode", "world"},
    {"train", "eval", "serve"},
    {"cli", "compat", "demo", "__init__", "__main__", "_register", "api"},
]
LEVEL = {package: level for level, packages in enumerate(FLOORS) for package in packages}
FREE_FOR_ALL = {"types"}
DATA_ONLY = {"recipes", "py.typed"}

FORBIDDEN = {"core": ("torch", "transformers"), "media": ("torch.nn",), "text": ("torch.nn",)}
"""What a package must not import, inside functions too; torch.nn.functional has no modules."""

FILES = sorted(SRC.rglob("*.py"))


def package_of(path: Path) -> str:
    name = path.relative_to(SRC).parts[0].removesuffix(".py")
    return name.partition("_")[0] if name.startswith("processor_") else name


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything imported, inside functions too, type checking excepted."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def breach(importer: str, name: str) -> str | None:
    """Why `importer` (a package of retinue) may not import `name`, or None."""
    for prefix in FORBIDDEN.get(importer, ()):
        if (name == prefix or name.startswith(f"{prefix}.")) and "nn.functional" not in name:
            return f"{importer} imports {name}"
    if not name.startswith("retinue."):
        return None
    imported = name.split(".")[1]
    if imported == importer or imported in FREE_FOR_ALL or imported not in LEVEL:
        return None
    if LEVEL[imported] < LEVEL[importer] or LEVEL[importer] == len(FLOORS) - 1:
        return None
    return f"{importer} (floor {LEVEL[importer]}) imports {imported} (floor {LEVEL[imported]})"


def test_every_package_has_a_floor():
    found = {package_of(path) for path in FILES} - DATA_ONLY
    assert found <= set(LEVEL), f"add to FLOORS: {sorted(found - set(LEVEL))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_imports_point_down(path):
    tree = ast.parse(path.read_text("utf-8"))
    found = [breach(package_of(path), name) for name in imports(tree)]
    assert [text for text in found if text] == []


@pytest.mark.parametrize(
    ("importer", "name"),
    [
        ("core", "retinue.types.Batch"),
        ("core", "torch.nn"),
        ("media", "torch.nn.Module"),
        ("media", "retinue.text.template"),
        ("model", "retinue.processor.Processor"),
        ("data", "retinue.hub.load"),
        ("train", "retinue.eval.runner"),
    ],
)
def test_breaches_are_seen(importer, name):
    free = name.startswith("retinue.types")
    assert (breach(importer, name) is None) == free


def test_function_level_imports_are_seen():
    tree = ast.parse("def f():\n    from retinue.cli import main\n")
    assert list(imports(tree)) == ["retinue.cli.main"]
