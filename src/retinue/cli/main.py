"""`retinue VERB`: the verbs table, lazy import of a verb, errors to exit codes.

Exit codes: 0 done, 2 the user's command, recipe or folder, 3 data, 4 the machine, 130 interrupted,
1 a bug of ours (with traceback).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from retinue.cli.launch import follow_parent, last_words
from retinue.core.errors import NO_ROOM, RetinueError, of_os
from retinue.parallel.launch import alone, peers_lost

VERBS = {
    "quickstart": "retinue.cli.quickstart",
    "doctor": "retinue.cli.doctor",
    "ls": "retinue.cli.ls",
    "cp": "retinue.cli.cp",
    "config": "retinue.cli.config",
    "build": "retinue.cli.build",
    "train": "retinue.cli.train",
    "chat": "retinue.cli.chat",
    "generate": "retinue.cli.generate",
    "eval": "retinue.cli.eval",
    "serve": "retinue.cli.serve",
    "ui": "retinue.cli.ui",
    "compare": "retinue.cli.compare",
    "data": "retinue.cli.data",
    "convert": "retinue.cli.convert",
    "merge": "retinue.cli.merge",
}
"""Verb -> the module that holds its `app`, in the order of the help page."""


class Verbs(TyperGroup):
    """A command group whose commands are imported when they are named."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(importlib.import_module(VERBS[cmd_name]).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=Verbs,
    help="Build, fine-tune, convert, evaluate and serve multimodal language models.",
    epilog="\b\nExamples:\n  retinue doctor\n  retinue ls recipes",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"retinue {installed('retinue')}")
        raise typer.Exit()


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors end as a line on stderr."""
    command = typer.main.get_command(app)
    try:
        result = command.main(
            list(arguments), prog_name="retinue", standalone_mode=False, obj=tuple(arguments)
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return report(error)
    return result if isinstance(result, int) else 0


def report(error: Exception) -> int:
    """Say on stderr what went wrong, in one line if it is not a bug; returns the exit code."""
    if isinstance(error, OSError) and (error.filename or error.errno in NO_ROOM):
        error = of_os(error)
    if peers_lost(error):
        if not last_words(error):
            print(f"retinue: {alone(error)}", file=sys.stderr)
        return 4
    if isinstance(error, RetinueError):
        if not last_words(error):
            print(f"retinue: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own usage errors
        error.show()
        return int(error.exit_code)
    traceback.print_exception(error)
    print("retinue: this is a bug; the traceback above belongs in the report", file=sys.stderr)
    return 1


def main() -> None:
    """Entry point of the `retinue` script.

    OpenMP threads that wait are to sleep: spinning ones fight a loader's worker, or any other
    process, for the cores (eight times slower updates were seen). Must be set before torch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    follow_parent()
    sys.exit(run(sys.argv[1:]))
