"""Every verb explains itself with two examples, and help starts without torch."""

import ast
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import retinue.cli
from retinue.cli.main import VERBS, run

CLI = Path(retinue.cli.__file__).parent
HELPERS = {"__init__", "main", "common", "run_spec"}
HEAVY = ("torch", "transformers", "PIL.Image", "peft", "numpy")


def commands() -> list[list[str]]:
    """Every command line that runs something: ["ls"], ["config", "show"], …"""
    found = []
    for name in VERBS:
        __import__(VERBS[name])
        command = typer.main.get_command(sys.modules[VERBS[name]].app)
        subs = getattr(command, "commands", None)
        found += [[name, sub] for sub in subs] if subs else [[name]]
    return found


def test_every_verb_file_is_in_the_table():
    files = {path.stem for path in CLI.glob("*.py")} - HELPERS
    apps = {name for name in files if "app = " in (CLI / f"{name}.py").read_text("utf-8")}
    assert apps == {module.rpartition(".")[2] for module in VERBS.values()}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_has_two_examples_that_parse(command, capsys):
    assert run([*command, "--help"]) == 0
    page = capsys.readouterr().out
    shown = re.findall(r"^\s+(retinue .+)$", page.partition("Examples:")[2], re.MULTILINE)
    assert len(shown) >= 2, page
    for line in shown:
        words = shlex.split(line.partition(" > ")[0].partition(" | ")[0])
        assert words[1 : 1 + len(command)] == command, line
        for option in (word for word in words if word.startswith("--")):
            assert option.partition("=")[0] in page, f"{line}: {option} is not an option"


@pytest.mark.parametrize("name", sorted(VERBS))
def test_verbs_import_nothing_heavy_at_module_level(name):
    """The whole import graph is measured below once; here the culprit's file is named."""
    source = (CLI / f"{name}.py").read_text("utf-8")
    names = [
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert [n for n in names if n.split(".")[0] in ("torch", "transformers", "peft")] == []


def test_help_of_everything_starts_without_torch():
    program = f"""
import io, json, sys, contextlib
from retinue.cli.main import run
with contextlib.redirect_stdout(io.StringIO()):
    codes = [run([*command, "--help"]) for command in {[[], *commands()]!r}]
print(json.dumps([codes, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    codes, heavy = json.loads(result.stdout)
    assert set(codes) == {0}
    assert heavy == []
    # Torch alone takes longer than this on the slowest machine that runs the tests.
    assert time.monotonic() - started < 5


def test_version(capsys):
    assert run(["--version"]) == 0
    assert re.fullmatch(r"retinue \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
