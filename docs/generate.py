"""Write docs/cli.md from the verbs' help and docs/reference.md from the registries."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "80"  # help pages wrap at the terminal's width

import typer

from retinue.cli.ls import FAMILIES, listing
from retinue.cli.main import VERBS, run

HERE = Path(__file__).parent
NOTE = "<!-- written by docs/generate.py; do not edit -->\n\n"


def help_of(command: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run([*command, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def cli() -> str:
    """One section per verb and sub-verb, with its help."""
    parts = [NOTE + "# Command line\n", f"```\n{help_of([])}\n```\n"]
    for verb, module in VERBS.items():
        __import__(module)
        found = typer.main.get_command(sys.modules[module].app)
        subs = list(getattr(found, "commands", {}))
        parts.append(f"## {verb}\n\n```\n{help_of([verb])}\n```\n")
        parts += [f"### {verb} {sub}\n\n```\n{help_of([verb, sub])}\n```\n" for sub in subs]
    return "\n".join(parts)


def reference() -> str:
    """One table per family of names."""
    parts = [NOTE + "# Names\n\nWhat `retinue ls FAMILY` prints: the words that recipes use.\n"]
    for family in [*FAMILIES, "recipes"]:
        rows = "".join(f"| `{name}` | {line} |\n" for name, line in listing(family).items())
        parts.append(f"## {family}\n\n| name | what |\n|---|---|\n{rows}")
    return "\n".join(parts)


PAGES = {"cli.md": cli, "reference.md": reference}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), "utf-8")
        print(HERE / name)
