"""ModelSpec: which leaf stands behind each seam; RetinueConfig: the same as transformers keeps it.

The number of visual tokens is a pure function of specs: `tokens_for`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, field_validator
from transformers import AutoConfig, PreTrainedConfig

from retinue.core.errors import ConfigError
from retinue.core.spec import Spec
from retinue.model.connectors.base import ConnectorField
from retinue.model.encoders.base import EncoderField, EncoderShape
from retinue.model.fusions.base import FusionField
from retinue.model.layouts.base import LayoutField
from retinue.model.lm.support import causal_class
from retinue.model.ropes import ROPES
from retinue.types import Grid, TokenShape


class ModelSpec(Spec):
    """The seams of one model. Sizes are never here: they stand in the backbones' configs.

    image_token_id: the placeholder id; one that the tokenizer can never produce from text, or the
    id of its `<image>` token. budget: visual tokens per view when a request names none. rope: how a
    language model with dynamic NTK scaling measures length (`retinue ls ropes`).
    """

    encoders: dict[str, EncoderField] = Field(default_factory=dict)
    connector: ConnectorField
    layout: LayoutField = Field(default_factory=lambda: {"kind": "plain"}, validate_default=True)
    fusion: FusionField = Field(default_factory=lambda: {"kind": "splice"}, validate_default=True)
    image_token_id: int = -1
    budget: int | None = None
    rope: str = "sequence"

    @field_validator("rope")
    @classmethod
    def _known_rope(cls, name: str) -> str:
        if name not in ROPES:
            raise ValueError(ROPES.unknown(name))
        return name


class RetinueConfig(PreTrainedConfig):
    """transformers' view of a model: text_config, encoders {name: backbone config}, spec."""

    model_type = "retinue"
    has_no_defaults_at_init = True

    def __init__(
        self,
        text_config: Any = None,
        encoders: Mapping[str, Any] | None = None,
        spec: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = as_config(text_config) if text_config is not None else None
        self.encoders = {name: as_config(config) for name, config in (encoders or {}).items()}
        self.spec = dict(spec or {})
        if self.text_config is not None:  # one truth: whether words share a table is the LM's
            kwargs["tie_word_embeddings"] = bool(self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the base class cannot dump a dict of configs."""
        encoders = self.__dict__.pop("encoders")
        try:
            data: dict[str, Any] = super().to_dict()
        finally:
            self.encoders = encoders
        data["encoders"] = {name: config.to_dict() for name, config in encoders.items()}
        return data

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        return self.text_config if self.text_config is not None else self


def as_config(data: Any) -> PreTrainedConfig:
    """A transformers config from a config or its dict (which must name a native model_type)."""
    if isinstance(data, PreTrainedConfig):
        return data
    fields = dict(data)
    kind = fields.pop("model_type", None)
    if kind is None:
        raise ConfigError("a backbone config without model_type", fix="name its model_type")
    try:
        return AutoConfig.for_model(kind, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ConfigError(
            f"no usable {kind} config", where="config", rule=" ".join(str(error).split())[:200]
        ) from error


class Plan:
    """A ModelSpec joined with its backbones' sizes: all questions of shape are answered here."""

    def __init__(self, config: RetinueConfig) -> None:
        self.config = config
        self.spec = ModelSpec.parse(config.spec, where="model")
        if config.text_config is not None:
            causal_class(config.text_config)
        missing = {name for name, _ in self.spec.connector.takes()} - set(self.spec.encoders)
        if missing:
            raise ConfigError(
                f"the connector takes {sorted(missing)}, which is no encoder of this model",
                where="model.connector",
                rule=f"encoders are {sorted(self.spec.encoders)}",
            )
        if self.spec.budget is not None:
            self.per_view()

    @cached_property
    def shapes(self) -> dict[str, EncoderShape]:
        return {
            name: spec.shape(self.config.encoders[name])
            for name, spec in self.spec.encoders.items()
        }

    @property
    def lm_width(self) -> int:
        text = self.config.get_text_config()
        return int(getattr(text, "hidden_size", None) or text.d_model)

    def tokens_for(self, grid: Grid, budget: int | None = None) -> int:
        """Visual tokens of one item: layout of the connector's tokens per view."""
        return self.spec.layout.num_tokens(grid, self.per_view(budget))

    def per_view(self, budget: int | None = None) -> TokenShape:
        """Tokens of one view at a budget, None = the default. Raises ConfigError for a bad one."""
        return self.spec.connector.num_tokens(
            self.shapes, budget if budget is not None else self.spec.budget
        )

    @property
    def budgets(self) -> list[int]:
        """Budgets of this model, tokens per view, ascending; one only if it is not elastic."""
        return self.spec.connector.budgets(self.shapes)

    def placeholders_for(self, grid: Grid, budget: int | None = None) -> int:
        """Ids that stand for one item in the sequence."""
        return self.spec.fusion.num_placeholders(self.tokens_for(grid, budget))
