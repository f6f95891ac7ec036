"""The `model:` section of a recipe: an existing model, or parts to assemble one from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from retinue.core.spec import Spec

if TYPE_CHECKING:
    import torch

Dtype = Literal["fp32", "fp16", "bf16", "float32", "float16", "bfloat16"]
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Part(Spec):
    """Where a backbone comes from: PATH of a folder or hub id (`from` or `path`), or a `config`."""

    model_config = {**Spec.model_config, "populate_by_name": True}

    source: str | None = Field(default=None, alias="from")
    config: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _path(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"from": data}
        if isinstance(data, Mapping) and "path" in data:
            return {("from" if key == "path" else key): value for key, value in data.items()}
        return data


class LMPart(Part):
    """The language model: weights from a folder, or a config with model_type and sizes.

    The folder may be a whole model of ours, of which the language model is taken.
    """

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.source is None) == (self.config is None):
            raise ValueError("give one of from and config")
        return self


class EncoderPart(Part):
    """An encoder: `kind`, where it comes from, and the fields of its kind's spec.

    The folder may be a whole model of ours, whose encoder of the same name is taken.
    """

    model_config = {**Part.model_config, "extra": "allow"}

    kind: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.source is None) == (self.config is None):
            raise ValueError("give one of from and config")
        if self.source is None and self.kind is None:
            raise ValueError("an encoder with a config needs 'kind'")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """What the encoder's own spec is to say."""
        return dict(self.model_extra or {})


class ModelSection(Spec):
    """`from` an existing model (its processor may be changed), or `lm`, `encoders`, `connector`.

    budget: visual tokens per view by default; scales: with `from`, budgets that its connector is
    made elastic for; labels, max_tokens: of the processor; base, adapters, rope: as in `load`;
    seed: of new weights.
    """

    model_config = {**Spec.model_config, "populate_by_name": True}

    source: str | None = Field(default=None, alias="from")
    base: str | None = None
    adapters: list[str] = Field(default_factory=list)
    lm: LMPart | None = None
    encoders: dict[str, EncoderPart] = Field(default_factory=dict)
    connector: dict[str, Any] | None = None
    layout: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    budget: int | None = None
    rope: str | None = None
    scales: list[int] | None = None
    image_token_id: int | None = None
    views: dict[str, Any] | None = None
    video: dict[str, Any] | None = None
    streams: dict[str, Any] | None = None
    template: str | dict[str, Any] | None = None
    labels: str | dict[str, Any] | None = None
    max_tokens: int | None = None
    tokenizer: Part | None = None
    dtype: Dtype | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.source is not None and self.lm is not None:
            raise ValueError("give `from`, or `lm` with its parts, not both")
        if self.source is None and (self.lm is None or self.connector is None or not self.encoders):
            raise ValueError("give `from`, or all of lm, encoders and connector")
        if self.source is None and self.scales is not None:
            raise ValueError("scales change a model given by `from`; a connector has its own")
        return self

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype asked for, None for that of the files."""
        import torch

        found: torch.dtype | None = None
        if self.dtype:
            found = getattr(torch, SHORT.get(self.dtype, self.dtype))
        return found
