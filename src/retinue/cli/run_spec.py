"""The whole recipe: the sections that training reads, and the model section.

A recipe is parsed in two steps, because floors 0-5 need not know how a model is assembled:
`RunSpec` of the training side keeps `model` as plain data, which is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from retinue.core.compose import Tree, compose
from retinue.core.registry import Registry
from retinue.core.spec import Spec
from retinue.hub.section import ModelSection
from retinue.media.frames import VideoPolicyField
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


def _encoder(part: dict[str, Any]) -> dict[str, Any]:
    """The spec of an encoder's kind, where the section names it, must accept the other fields."""
    if "kind" in part:
        ENCODERS.spec_of({key: part[key] for key in part if key not in ("from", "path", "config")})
    return part


class Leaves(Spec):
    """The parts of a model section that name leaves, checked against the leaves' own specs."""

    model_config = ConfigDict(extra="ignore")

    connector: ConnectorField | None = None
    layout: LayoutField | None = None
    fusion: FusionField | None = None
    views: ViewPolicyField | None = None
    video: VideoPolicyField | None = None
    template: Annotated[str | dict[str, Any], _known(TEMPLATES)] | None = None
    labels: Annotated[str | dict[str, Any], _known(LABELS)] | None = None
    encoders: dict[str, Annotated[dict[str, Any], AfterValidator(_encoder)]] | None = None


def compose_run(recipe: str, overrides: Sequence[str] = ()) -> tuple[Tree, RunSpec]:
    """Compose and check a training recipe. Raises ConfigError naming every wrong value."""
    tree = compose(recipe, overrides, aliases=ALIASES)
    spec = RunSpec.parse(tree.data, where=recipe)
    model_data(spec.model, where=f"{recipe}: model")
    return tree, spec


def model_data(model: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A checked model section as plain data with its defaults. Raises ConfigError."""
    section = ModelSection.parse(model, where=where)
    leaves = Leaves.parse(model, where=where).model_dump(
        mode="json", exclude={"encoders"}, exclude_none=True
    )
    return section.model_dump(mode="json", by_alias=True, exclude_none=True) | leaves


def with_defaults(spec: RunSpec) -> dict[str, Any]:
    """A checked recipe as plain data, every default written out."""
    data = spec.model_dump(mode="json", by_alias=True)
    return {**data, "model": model_data(spec.model, where="model")}


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
