"""Linear layers with exact GELU between them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from retinue.model.connectors.base import ConnectorSpec
from retinue.model.connectors.linear import Dense
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape


class MlpSpec(UnarySpec):
    """`depth` linear layers; `hidden`: inner width, absent = the output width."""

    kind: Literal["mlp"] = "mlp"
    depth: int = Field(default=2, ge=1)
    out: int | None = None
    hidden: int | None = None
    bias: bool = True

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.out or lm_width


class Mlp(Unary):
    """MLP projector, `mlpNx_gelu` of LLaVA-1.5 (arXiv 2310.03744).

    Keys follow the original's Sequential: net.0, net.2, net.4, …
    """

    Spec: ClassVar[type[ConnectorSpec]] = MlpSpec

    def __init__(self, spec: MlpSpec, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        out = spec.width(shapes, lm_width)
        widths = [spec.of.width(shapes, lm_width)]
        widths += [spec.hidden or out] * (spec.depth - 1) + [out]
        layers: list[nn.Module] = []
        for number, (wide, narrow) in enumerate(pairwise(widths)):
            layers += [nn.GELU()] * bool(number) + [Dense(wide, narrow, bias=spec.bias)]
        self.net = nn.Sequential(*layers)

    def map(self, x_NLD: Tensor) -> Tensor:
        found: Tensor = self.net(x_NLD)
        return found
