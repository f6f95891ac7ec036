"""Only ops/ and parallel/ may name a kind of accelerator; all else works on a torch.device."""

import ast
from pathlib import Path

import pytest

import retinue

SRC = Path(retinue.__file__).parent
ALLOWED = ("ops", "parallel")
FILES = [
    path for path in sorted(SRC.rglob("*.py")) if path.relative_to(SRC).parts[0] not in ALLOWED
]
BACKENDS = ("cuda", "mps", "xpu")


def device_calls(source: str) -> list[str]:
    """`torch.cuda…`, `x.cuda()`, `x.to("cuda")`, `torch.device("mps")` and the like."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in BACKENDS:
            found.append(f"line {node.lineno}: .{node.attr}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [f"line {node.lineno}: import {n}" for n in names if "torch.cuda" in n]
        if isinstance(node, ast.Call):
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            found += [
                f"line {node.lineno}: {value.value!r} as an argument"
                for value in values
                if isinstance(value, ast.Constant)
                and str(value.value).partition(":")[0] in BACKENDS
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_no_accelerator_is_named(path):
    assert device_calls(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["x.cuda()", "torch.cuda.synchronize()", "x.to('cuda:0')", "f(device='mps')",
     "import torch.cuda.amp"],
)  # fmt: skip
def test_the_search_finds_them(source):
    assert len(device_calls(source)) >= 1
