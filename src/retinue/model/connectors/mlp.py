"""Linear layers with exact GELU between them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers.activations import ACT2FN

from retinue.model.connectors.base import ConnectorSpec
from retinue.model.connectors.linear import Dense
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape


class MlpSpec(UnarySpec):
    """`depth` linear layers; `hidden`: inner width, absent = the output width.

    units: the width of every layer, in place of depth, hidden and out; acts: what follows each of
    them (a name of transformers' activations, or null), in place of GELU between them. std: of
    fresh weights, with biases zero; absent = torch's own rule.
    """

    kind: Literal["mlp"] = "mlp"
    depth: int = Field(default=2, ge=1)
    out: int | None = None
    hidden: int | None = None
    bias: bool = True
    units: list[int] | None = Field(default=None, min_length=1)
    acts: list[str | None] | None = None
    std: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _agree(self) -> MlpSpec:
        if self.units and (self.out or self.hidden):
            raise ValueError("give units, or hidden and out, not both")
        if self.acts is not None and len(self.acts) != len(self.units or ()):
            raise ValueError("acts needs units, one name or null for each")
        unknown = [name for name in self.acts or () if name is not None and name not in ACT2FN]
        if unknown:
            raise ValueError(f"unknown activation {unknown[0]!r}")
        return self

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.units[-1] if self.units else self.out or lm_width


class Mlp(Unary):
    """MLP projector, `mlpNx_gelu` of LLaVA-1.5 (arXiv 2310.03744).

    Keys follow the original's Sequential: net.0, net.2, net.4, …
    """

    Spec: ClassVar[type[ConnectorSpec]] = MlpSpec

    def __init__(self, spec: MlpSpec, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        out = spec.width(shapes, lm_width)
        units = spec.units or [spec.hidden or out] * (spec.depth - 1) + [out]
        acts: list[Any] = list(spec.acts or ["gelu"] * (len(units) - 1) + [None])
        layers: list[nn.Module] = []
        for (wide, narrow), act in zip(
            pairwise([spec.of.width(shapes, lm_width), *units]), acts, strict=True
        ):
            layer = Dense(wide, narrow, bias=spec.bias)
            if spec.std is not None:
                layer.std = spec.std
                layer.reset_parameters()
            layers += [layer, activation(act)]
        self.net = nn.Sequential(*(layers[:-1] if acts[-1] is None else layers))

    def map(self, x_NLD: Tensor) -> Tensor:
        found: Tensor = self.net(x_NLD)
        return found


def activation(name: str | None) -> nn.Module:
    """The module of an activation's name; null changes nothing."""
    if name is None:
        return nn.Identity()
    found: nn.Module = nn.GELU() if name == "gelu" else ACT2FN[name]
    return found
