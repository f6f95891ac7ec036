"""`retinue ls FAMILY`: the names that recipes and options may use, with a line on each."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from retinue.cli.common import AsJson, examples, print_json, verb
from retinue.core.errors import ConfigError
from retinue.core.log import print_table
from retinue.core.paths import recipes, tasks
from retinue.core.registry import nearest

FAMILIES = {
    "encoders": "retinue.model.encoders:ENCODERS",
    "connectors": "retinue.model.connectors:CONNECTORS",
    "layouts": "retinue.model.layouts:LAYOUTS",
    "fusions": "retinue.model.fusions:FUSIONS",
    "lms": "retinue.model.lm:LMS",
    "ropes": "retinue.model.ropes:ROPES",
    "quants": "retinue.model.quant:QUANTS",
    "mergers": "retinue.hub.merge:MERGERS",
    "targets": "retinue.hub.targets:TARGETS",
    "views": "retinue.media:VIEWS",
    "videos": "retinue.media:VIDEOS",
    "templates": "retinue.text.templates:TEMPLATES",
    "labels": "retinue.text.labels:LABELS",
    "formats": "retinue.data.formats:FORMATS",
    "datasets": "retinue.data.published:PUBLISHED",
    "fills": "retinue.data.fill:FILLS",
    "augments": "retinue.data.augment:AUGMENTS",
    "samplers": "retinue.data.sampler:SAMPLERS",
    "objectives": "retinue.train.objectives:OBJECTIVES",
    "sinks": "retinue.train.sinks:SINKS",
    "scorers": "retinue.eval.scorers:SCORERS",
    "readers": "retinue.eval.readers:READERS",
    "measures": "retinue.eval.measures:MEASURES",
    "submissions": "retinue.eval.submissions:SUBMISSIONS",
    "tasks": "retinue.world.tasks:TASKS",
}
"""Family -> its registry."""
EVERY = [*FAMILIES, "recipes", "benchmarks"]

app = verb()


@app.command(epilog=examples("retinue ls encoders", "retinue ls recipes --json"))
def ls(
    family: Annotated[
        str | None,
        typer.Argument(help=f"One of {', '.join(EVERY)}; none lists these."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List encoders, connectors, templates, recipes and other names with what they are."""
    names = listing(family)
    if as_json:
        print_json(names)
    else:
        print_table(list(names.items()), header=("name", "what"))


def listing(family: str | None) -> dict[str, str]:
    """Name -> first line of its documentation. Raises ConfigError for an unknown family."""
    families = EVERY
    if family is None:
        return {name: f"{len(listing(name))} names" for name in families}
    if family == "recipes":
        return {name: first_comment(path.read_text("utf-8")) for name, path in recipes().items()}
    if family == "benchmarks":
        return {name: first_comment(path.read_text("utf-8")) for name, path in tasks().items()}
    if family not in FAMILIES:
        hint = nearest(family, families)
        raise ConfigError(
            f"unknown family {family!r}" + (f"; did you mean {hint!r}?" if hint else ""),
            rule=f"known: {', '.join(families)}",
        )
    registry = load(FAMILIES[family])
    return {name: registry.describe(name) for name in registry.names()}


def load(place: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def first_comment(text: str) -> str:
    """First line of a recipe's header comment."""
    return text.partition("\n")[0].removeprefix("#").strip() if text.startswith("#") else ""
