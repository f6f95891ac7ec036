"""What verbs share: help with examples, the device option, JSON output."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

import typer

from retinue.core.errors import ConfigError
from retinue.core.log import rank

Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option(help="Where to compute; `retinue doctor` says what auto chooses and why."),
]
"""Type of a verb's `device` argument; give it the default "auto"."""

Quant = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Weights of the language model in fewer bits: bnb8, bnb4, int8 or int4 "
        "(8bit, 4bit: the bnb ones; `retinue ls quants`).",
    ),
]
"""Type of a verb's `quant` argument; give it the default None."""

QuantEncoders = Annotated[
    bool, typer.Option("--quant-encoders", help="With --quant: the encoders' weights too.")
]

QuantHead = Annotated[
    bool, typer.Option("--quant-head", help="With --quant: the output head's weights too.")
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Changes to the recipe, such as train.stages.sft.optim.lr=1e-4; values are YAML.",
        show_default=False,
    ),
]
"""Type of a verb's trailing `overrides` argument; give it the default None."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def quant_setting(kind: str | None, *, encoders: bool = False, head: bool = False) -> str | None:
    """What a record of a run says about --quant: the kind's own name. Raises ConfigError."""
    from retinue.model.quant import canonical

    if kind is None:
        return None
    return canonical(kind) + ", encoders too" * encoders + ", head too" * head


def examples(*commands: str) -> str:
    """Epilog of a verb's help: its working example commands, one a line, not rewrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def verb(help_: str | None = None) -> typer.Typer:
    """The Typer app of one verb file; `help_` describes a verb that has sub-commands."""
    return typer.Typer(
        help=help_,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=help_ is not None,
    )


def print_json(data: Any) -> None:
    """Print plain data as indented JSON; what is not plain is printed as text."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def note(line: str) -> None:
    """One line to the user that is not the command's output; the first rank speaks."""
    if rank() == 0:
        print(line, file=sys.stderr)


def pairs(texts: list[str] | None, *, option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a dict. Raises ConfigError for one without `=`."""
    found = [text.partition("=") for text in texts or []]
    for name, sign, value in found:
        if not (name and sign and value):
            raise ConfigError(
                f"{name + sign + value!r} is no NAME=VALUE", where=option, rule="such as clip=PATH"
            )
    return {name: value for name, _, value in found}
