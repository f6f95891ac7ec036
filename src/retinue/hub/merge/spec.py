"""The recipe of a merge: the method, the checkpoints with their weights, what they stand on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, FiniteFloat, field_validator, model_validator

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest
from retinue.core.spec import Spec
from retinue.hub.merge.base import MergerField
from retinue.hub.section import Dtype
from retinue.model.freeze import matches

RESERVED = ("base", "merged")
"""Columns of the report that no source is called."""


class SourceSpec(Spec):
    """One checkpoint: `from` a folder or hub id, its weight, and other weights by name.

    weights: pattern over our parameter names -> weight there; of several that match, the last
    counts. name: how reports and overrides call it. base, encoders: as in `load`, for folders that
    need them.
    """

    model_config = {**Spec.model_config, "populate_by_name": True}

    source: str = Field(alias="from")
    name: str | None = None
    weight: FiniteFloat = 1.0
    weights: dict[str, FiniteFloat] = Field(default_factory=dict)
    base: str | None = None
    encoders: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _path(cls, data: Any) -> Any:
        return {"from": data} if isinstance(data, str) else data

    @field_validator("weights")
    @classmethod
    def _readable(cls, weights: dict[str, float]) -> dict[str, float]:
        for pattern in weights:
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern.removeprefix("re:"))
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return weights

    def weight_of(self, name: str) -> float:
        """The weight of one parameter."""
        found = [weight for pattern, weight in self.weights.items() if matches(pattern, name)]
        return found[-1] if found else self.weight

    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError for a pattern that reaches no parameter."""
        for pattern in self.weights:
            if not any(matches(pattern, name) for name in names):
                heads = sorted({f"{name.partition('.')[0]}.**" for name in names})
                hint = nearest(pattern, heads)
                raise ConfigError(
                    f"pattern {pattern!r} matches no parameter"
                    + (f"; did you mean {hint!r}?" if hint else ""),
                    where=f"weights of {self.name or self.source}",
                    rule=f"parameters live under {', '.join(heads)}",
                )


class MergeSpec(Spec):
    """A whole merge.

    base: what task vectors are differences to; config, processor and tokenizer come from it, or
    from the first source where there is none. accept: patterns of config fields in which the
    checkpoints may disagree (the first's, or base's, count). template: for folders without one.
    """

    method: MergerField
    sources: list[SourceSpec] = Field(min_length=1)
    base: SourceSpec | None = None
    dtype: Dtype | None = None
    accept: list[str] = Field(default_factory=list)
    template: str | None = None

    def check(self) -> None:
        """Raise ConfigError where method, sources and base do not go together."""
        count, kind = len(self.sources), self.method.kind
        if self.method.needs_base and self.base is None:
            raise ConfigError(
                f"{kind} without a base",
                where="merge",
                rule="it adds what models learnt since the model that all were tuned from",
                fix="name that one: --base PATH, or base: in the recipe",
            )
        if self.method.exactly not in (None, count):
            raise ConfigError(
                f"{kind} takes {self.method.exactly} sources, not {count}", where="merge"
            )
        if count < 2 and not self.method.needs_base:
            raise ConfigError(
                f"{kind} of one source is that source", where="merge", fix="name two or more"
            )
        if self.base is not None and (self.base.weights or self.base.weight != 1):
            raise ConfigError("a weight of the base", where="merge", rule="only sources have one")

    @property
    def labels(self) -> list[str]:
        """What the sources are called: their names, or their folders'; numbered where alike."""
        short = [
            source.name or source.source.rstrip("/").rpartition("/")[2] for source in self.sources
        ]
        plain = [
            source.name or (source.source if short.count(label) > 1 else label)
            for source, label in zip(self.sources, short, strict=True)
        ]
        return [
            f"{label} ({number})" if plain.count(label) > 1 or label in RESERVED else label
            for number, label in enumerate(plain, start=1)
        ]


def as_spec(spec: MergeSpec | Mapping[str, Any], *, where: str) -> MergeSpec:
    """A checked recipe. Raises ConfigError listing every wrong field."""
    return spec if isinstance(spec, MergeSpec) else MergeSpec.parse(spec, where=where)
