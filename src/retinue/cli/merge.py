"""`retinue merge PATH... --out DIR`: several checkpoints of one architecture into one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retinue.cli.common import AsJson, examples, note, print_json, verb
from retinue.core.errors import ConfigError

app = verb()


@app.command(
    epilog=examples(
        "retinue merge real synthetic --method linear --weights 0.5,0.5 --out mixed",
        "retinue merge one two three --base start --method ties --density 0.3 --out merged",
        "retinue merge one two --weights 1,1 --weight-of 'encoders.**=1,0' --out merged",
        "retinue merge one two",
        "retinue merge merge.yaml sources.real.weight=0.7 --out mixed",
    )
)
def merge(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders or hub ids; or a YAML recipe and KEY=VALUE changes to it.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; none only compares.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="linear (default) or another of `retinue ls mergers`.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="One per model; default 1 each.")
    ] = None,
    weight_of: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=W,W,...", help="Weights of some parameters; the last counts."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The model that all were tuned from; gives the settings.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="For ties and dare: share of numbers that is kept.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="For task, ties and dare: factor of what is added.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For dare: which numbers are dropped.")] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Divide by the sum of the weights?"),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Default: the first model's.")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Config field in which models may disagree."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template to use instead of the folder's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge models tensor by tensor and report how far apart they were."""
    settings = {"density": density, "scale": scale, "seed": seed, "normalize": normalize}
    kind: dict[str, Any] = {k: v for k, v in settings.items() if v is not None}
    options = {"base": base, "dtype": dtype, "accept": accept, "template": template}
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if is_recipe(paths[0]):
        if kind or given or method or weights or weight_of:
            raise ConfigError(
                "options that a recipe says itself",
                where=paths[0],
                rule="beside a recipe only --out and --json",
                fix="write changes behind it: sources.0.weight=0.7 method.density=0.3",
            )
        from retinue.core.compose import compose

        data, where = compose(paths[0], paths[1:]).data, paths[0]
    else:
        sources = with_weights(paths, weights=weights, weight_of=weight_of or [])
        data = {"method": {"kind": method or "linear", **kind}, "sources": sources, **given}
        where = "merge"
    run(data, out, where=where, as_json=as_json)


def run(data: dict[str, Any], out: Path | None, *, where: str, as_json: bool) -> None:
    """Merge with a progress bar, then print the report."""
    from retinue.cli.answering import progress
    from retinue.core.log import print_table
    from retinue.hub.merge.run import Merge
    from retinue.hub.merge.spec import as_spec

    plan = Merge(as_spec(data, where=where))
    title = "comparing" if out is None else "merging"
    with progress(title, total=len(plan.first.shapes)) as shown:
        report = plan.run(out, progress=lambda done, _: shown(done))
    if as_json:
        print_json({"folder": out, **report.to_json()})
        return
    title = f"distance to {report.first}, relative"
    print_table(report.rows, header=report.header, title=title)
    for line in report.notes:
        note(line)
    if out is not None:
        note(f"{report.method} of {len(plan.sources)} models in {out}")


def is_recipe(text: str) -> bool:
    """Whether the first argument is a YAML file."""
    return text.endswith((".yaml", ".yml"))


def with_weights(paths: list[str], *, weights: str | None, weight_of: list[str]) -> list[Any]:
    """The `sources:` of a recipe. Raises ConfigError where numbers and models do not match."""
    each = numbers(weights, count=len(paths), option="--weights") if weights else [1.0] * len(paths)
    named: list[dict[str, float]] = [{} for _ in paths]
    for text in weight_of:
        pattern, sign, values = text.rpartition("=")
        if not sign:
            raise ConfigError(
                f"{text!r} is no PATTERN=W,W,...", where="--weight-of", rule="'encoders.**=1,0'"
            )
        found = numbers(values, count=len(paths), option="--weight-of")
        for own, weight in zip(named, found, strict=True):
            own.pop(pattern, None)
            own[pattern] = weight
    return [
        {"from": path, "weight": weight, "weights": own}
        for path, weight, own in zip(paths, each, named, strict=True)
    ]


def numbers(text: str, *, count: int, option: str) -> list[float]:
    """`0.5,0.5` as numbers, one per model. Raises ConfigError."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise ConfigError(
            f"{text!r} is not {count} numbers",
            where=option,
            rule="one weight per model, in their order, separated by commas",
        )
    return found
