"""`retinue config show|diff|tuning|schema`: what a recipe says in the end, and who said it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retinue.cli.common import AsJson, Overrides, examples, pairs, print_json, verb
from retinue.core.compose import Tree, diff, flow
from retinue.core.log import print_table

app = verb("Show a composed recipe, compare two, print the schema for editors.")

Recipe = Annotated[str, typer.Argument(help="A YAML file or a name of `retinue ls recipes`.")]


@app.command(
    epilog=examples(
        "retinue config show llava15-7b/sft --origin",
        "retinue config show llava15-7b/sft stages.sft.optim.lr=1e-5",
    )
)
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value was set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a recipe with includes, overrides and defaults applied."""
    tree = full(recipe, overrides or [])
    if as_json:
        print_json(tree.data)
    else:
        typer.echo(tree.dump(origins=origin), nl=False)


@app.command(
    "diff",
    epilog=examples(
        "retinue config diff llava15-7b/sft llava15-7b/lora",
        "retinue config diff llava15-7b/sft my.yaml --json",
    ),
)
def diff_(old: Recipe, new: Recipe, as_json: AsJson = False) -> None:
    """Print the values in which two recipes differ."""
    rows = diff(full(old, []), full(new, []))
    if as_json:
        print_json([{"path": path, "old": a, "new": b} for path, a, b in rows])
    else:
        print_table([(path, flow(a), flow(b)) for path, a, b in rows], header=("path", old, new))


@app.command(
    epilog=examples(
        "retinue config tuning tuning_config.json --model flamingo-9b",
        "retinue config tuning lora+perceiver.json --model released.pt --base mpt-7b --json",
        "retinue config tuning llama_peft/config.json --model llama_peft",
    )
)
def tuning(
    file: Annotated[
        Path,
        typer.Argument(
            help="A tuning config of Instruct-Flamingo, or LLaMA2-Accessory's config.json."
        ),
    ],
    model: Annotated[str, typer.Option(help="The model that it tunes.")],
    base: Annotated[
        str | None, typer.Option(help="The language model of an OpenFlamingo checkpoint.")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of an encoder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a tuning config as the `trainable:` rules of a stage."""
    from retinue.convert.sphinx_tuning import FIELDS, accessory_rules
    from retinue.convert.tuning import trainable_rules
    from retinue.convert.weights import read_json
    from retinue.hub.flamingo import ADAPTER
    from retinue.hub.resolve import resolve
    from retinue.hub.sources import open_folder
    from retinue.hub.stream import skeleton

    said = read_json(file)
    opened = open_folder(model, base=base, encoders=pairs(encoder, option="--encoder") or None)
    names = [name for name, _ in skeleton(opened.config).named_parameters()]
    named = said.get("from_pretrained")
    adapter = read_json(resolve(str(named)) / ADAPTER) if named else None
    if set(said) & set(FIELDS):
        rules = accessory_rules(said, names, prefixed=any(n.endswith(".prefix") for n in names))
    else:
        rules = trainable_rules(said, names, adapter=adapter)
    if as_json:
        print_json({"trainable": rules})
    else:
        typer.echo(Tree(data={"trainable": rules}).dump(), nl=False)


@app.command(
    epilog=examples("retinue config schema > retinue.schema.json", "retinue config schema | head")
)
def schema() -> None:
    """Print the JSON schema of recipes, for completion in editors."""
    from retinue.cli.run_spec import run_schema

    print_json(run_schema())


def full(recipe: str, overrides: list[str]) -> Tree:
    """The composed recipe, validated, with every default written out. Raises ConfigError."""
    from retinue.cli.run_spec import compose_run, with_defaults

    tree, spec = compose_run(recipe, overrides)
    return Tree(data=with_defaults(spec), origins=tree.origins)
