"""The `retinue` command: one file per verb, imported when asked for.

A verb file holds `app = typer.Typer(...)` from `retinue.cli.common.verb()` with one command (or
several, for `data check`), examples in its epilog, and no import of torch or transformers at
module level; `retinue.cli.main.VERBS` names it.
"""
