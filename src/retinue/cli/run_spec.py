"""The whole recipe: the sections that training reads, and the model section.

A recipe is parsed in two steps, because floors 0-5 need not know how a model is assembled:
`RunSpec` of the training side keeps `model` as plain data, `ModelSection` checks it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from retinue.core.compose import Tree, compose
from retinue.core.registry import Registry
from retinue.core.spec import Spec
from retinue.media.views import ViewPolicyField
from retinue.model.connectors.base import ConnectorField
from retinue.model.encoders import ENCODERS
from retinue.model.fusions.base import FusionField
from retinue.model.layouts.base import LayoutField
from retinue.text.labels import LABELS
from retinue.text.templates import TEMPLATES
from retinue.train.spec import RunSpec

ALIASES = {"stages": "train.stages"}
"""First word of an override -> the path that it stands for."""


def _known(registry: Registry[Any]) -> AfterValidator:
    def check(value: Any) -> Any:
        name = value if isinstance(value, str) else value.get("name", value.get("kind"))
        if name is not None and name not in registry:
            raise ValueError(registry.unknown(str(name)))
        return value

    return AfterValidator(check)


class Backbone(Spec):
    """A language model: a folder or hub id of weights (`from`), or a transformers config to be
    filled with random weights (`config`, with its model_type)."""

    model_config = ConfigDict(populate_by_name=True)

    source: str | None = Field(default=None, alias="from")
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.source is None) == (self.config is None):
            raise ValueError("give either from: or config:")
        return self


class EncoderSection(Backbone):
    """An encoder: where its weights or sizes come from, and its spec (`kind`, `stream`, …)."""

    model_config = ConfigDict(populate_by_name=True, extra="allow")

    kind: str

    @model_validator(mode="after")
    def _spec(self) -> Self:
        if self.kind not in ENCODERS:
            raise ValueError(ENCODERS.unknown(self.kind))
        ENCODERS.spec_of({"kind": self.kind, **(self.model_extra or {})})
        return self


class ModelSection(Spec):
    """A model: an existing one (`from`), or one assembled from a language model and encoders.

    With `from`, only template, labels, views, max_tokens and dtype may be set beside it; they
    override what the folder says. tokenizer: a folder or hub id, by default the language model's.
    """

    model_config = ConfigDict(populate_by_name=True)

    source: str | None = Field(default=None, alias="from")
    lm: Backbone | None = None
    tokenizer: str | None = None
    encoders: dict[str, EncoderSection] | None = None
    connector: ConnectorField | None = None
    layout: LayoutField | None = None
    fusion: FusionField | None = None
    budget: int | None = Field(default=None, gt=0)
    views: ViewPolicyField | None = None
    template: Annotated[str | dict[str, Any], _known(TEMPLATES)] | None = None
    labels: Annotated[str | dict[str, Any], _known(LABELS)] | None = None
    max_tokens: int | None = Field(default=None, gt=0)
    dtype: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        parts = ("lm", "tokenizer", "encoders", "connector", "layout", "fusion", "budget")
        given = [name for name in parts if getattr(self, name) is not None]
        if self.source is not None and given:
            raise ValueError(f"from: loads a whole model, so {', '.join(given)} cannot be given")
        missing = [name for name in ("lm", "encoders", "connector") if getattr(self, name) is None]
        if self.source is None and missing:
            raise ValueError(f"give from:, or also {', '.join(missing)}")
        return self


def compose_run(recipe: str, overrides: Sequence[str] = ()) -> tuple[Tree, RunSpec]:
    """Compose and check a training recipe. Raises ConfigError naming every wrong value."""
    tree = compose(recipe, overrides, aliases=ALIASES)
    spec = RunSpec.parse(tree.data, where=recipe)
    ModelSection.parse(spec.model, where=f"{recipe}: model")
    return tree, spec


def with_defaults(spec: RunSpec) -> dict[str, Any]:
    """A checked recipe as plain data, every default written out."""
    model = ModelSection.parse(spec.model, where="model")
    data = spec.model_dump(mode="json", by_alias=True)
    return {**data, "model": model.model_dump(mode="json", by_alias=True, exclude_none=True)}


def schema_of(cls: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a spec; nodes found by `kind` are open objects in it."""
    return cls.model_json_schema(by_alias=True)


def run_schema() -> dict[str, Any]:
    """JSON schema of a whole recipe."""
    schema, model = schema_of(RunSpec), schema_of(ModelSection)
    schema["$defs"] = {**model.pop("$defs", {}), **schema.get("$defs", {}), "ModelSection": model}
    schema["properties"]["model"] = {"$ref": "#/$defs/ModelSection"}
    schema["properties"]["include"] = {"type": ["string", "array"], "items": {"type": "string"}}
    return schema
