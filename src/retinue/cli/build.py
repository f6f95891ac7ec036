"""`retinue build RECIPE OUT`: a new model from a recipe's `model:` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli.common import AsJson, Overrides, examples, note, print_json, verb
from retinue.core.errors import ConfigError
from retinue.core.log import print_table

app = verb()


@app.command(
    epilog=examples(
        "retinue build llava15-7b/align new-model",
        "retinue build my.yaml new-model model.connector.depth=3 --json",
    )
)
def build(
    recipe: Annotated[str, typer.Argument(help="A recipe; only its model: section is read.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Assemble a model: language model, encoders, new connector."""
    from retinue.cli.run_spec import ALIASES, model_data
    from retinue.core.compose import compose
    from retinue.hub.build import build as build_model

    tree = compose(recipe, overrides or [], aliases=ALIASES)
    section = tree.data.get("model")
    if not isinstance(section, dict):
        raise ConfigError("there is no model: section", where=recipe)
    where = f"{recipe}: model"
    model_data(section, where=where)
    report = build_model(section, out, where=where)
    rows = [(name, g.loaded, g.new, g.source) for name, g in report.groups.items()]
    if as_json:
        names = ("part", "loaded", "new", "source")
        print_json({"folder": out, "parts": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    total = sum(row[1] + row[2] for row in rows)
    print_table(rows, header=("part", "loaded", "new", "source"))
    note(f"{total:,} parameters in {out}")
