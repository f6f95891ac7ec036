"""`retinue cp RECIPE DST`: a packaged recipe becomes a file of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from retinue.cli.common import examples, verb
from retinue.core.errors import ConfigError
from retinue.core.paths import find_recipe

app = verb()


@app.command(
    epilog=examples("retinue cp llava15-7b/sft .", "retinue cp llava15-7b/lora my-lora.yaml")
)
def cp(
    recipe: Annotated[str, typer.Argument(help="A name of `retinue ls recipes`.")],
    target: Annotated[Path, typer.Argument(help="A folder, or the new file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe, with its comments, to change it."""
    source = find_recipe(recipe)
    path = target / source.name if target.is_dir() else target
    if path.exists() and not force:
        raise ConfigError("exists already", where=str(path), fix="name another file, or --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    typer.echo(str(path))
