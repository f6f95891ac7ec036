"""The rules of `trainable:`: what a stage does with the parameters that a pattern names."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field, field_validator
from torch import nn

from retinue.core.errors import ConfigError
from retinue.core.spec import Spec

IdOf = Callable[[str], int | None]
"""A token -> its id, None where the tokenizer has no such token."""


class FullSpec(Spec):
    """Train the weights themselves. lr: absolute, or `x0.1` = a tenth of the stage's."""

    lr: float | str | None = None

    @field_validator("lr")
    @classmethod
    def _readable(cls, value: float | str | None) -> float | str | None:
        own_lr(value, 1.0)
        return value


class LoraSpec(FullSpec):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on linear layers.

    targets: last names of the layers (`q_proj`); None = all linears but the output head.
    alpha: None = twice the rank.
    """

    r: int = Field(default=16, gt=0)
    alpha: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class LoraRule(Spec):
    lora: LoraSpec


class FullRule(Spec):
    full: FullSpec


class RowsSpec(FullSpec):
    """Train some rows of an embedding; all others keep their bits, since none of it decays.

    of: tokens as the tokenizer spells them (`<image>`), or numbers of rows.
    """

    of: tuple[int | str, ...] = Field(min_length=1)


class RowsRule(Spec):
    rows: RowsSpec


Rule = Literal["frozen", "full"] | LoraRule | FullRule | RowsRule
"""What stands behind a pattern in `trainable:`."""


def own_lr(value: float | str | None, lr: float) -> float:
    """A rule's learning rate under a stage's: None, absolute, or `x` and a factor."""
    if value is None:
        return lr
    if isinstance(value, str):
        found = re.fullmatch(r"x\s*([0-9.]+(?:e[-+]?\d+)?)", value.strip().lower())
        if found is None:
            raise ValueError(f"lr is a number or a factor such as 'x0.1', not {value!r}")
        return lr * float(found[1])
    return value


def rows_of(
    spec: RowsSpec, model: nn.Module, *, pattern: str, name: str, id_of: IdOf | None
) -> tuple[int, ...]:
    """The rows of parameter `name` that a rule trains, ascending.

    Raises ConfigError where `name` is no embedding, a token has no id, or a row is not there.
    """
    where = f"train.stages.*.trainable.{pattern}"
    table = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(table, nn.Embedding):
        raise ConfigError(
            f"rows of {name}, which belongs to a {type(table).__name__}",
            where=where,
            rule="rows are those of an embedding",
            fix="name the word table alone, or use full",
        )
    found: set[int] = set()
    for one in spec.of:
        row = one if isinstance(one, int) else (id_of or _nobody)(one)
        if row is None:
            raise ConfigError(
                f"the tokenizer has no token {one!r}",
                where=where,
                fix="add it to model.tokens, or give the number of its row",
            )
        if not 0 <= row < table.num_embeddings:
            raise ConfigError(
                f"row {row} of {name}",
                where=where,
                rule=f"it has {table.num_embeddings} rows, from 0",
            )
        found.add(row)
    return tuple(sorted(found))


def _nobody(token: str) -> int | None:
    """The ids of a model without a tokenizer."""
    return None
