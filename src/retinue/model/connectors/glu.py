"""A projection to the language model's width and a gated feed-forward part on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from retinue.model.connectors.linear import Dense
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape


class GluSpec(UnarySpec):
    """`inner`: width inside the gated part, usually the language model's feed-forward width."""

    kind: Literal["glu"] = "glu"
    inner: int

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return lm_width


class Glu(Unary):
    """x = gelu(norm(W x)), then down(silu(gate x) * up x): CogVLM's adapter (arXiv 2311.03079)."""

    Spec: ClassVar[type[UnarySpec]] = GluSpec

    def __init__(self, spec: GluSpec, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        self.linear_proj = Dense(spec.of.width(shapes, lm_width), lm_width, bias=False)
        self.norm1 = nn.LayerNorm(lm_width)
        self.gate_proj = Dense(lm_width, spec.inner, bias=False)
        self.dense_h_to_4h = Dense(lm_width, spec.inner, bias=False)
        self.dense_4h_to_h = Dense(spec.inner, lm_width, bias=False)

    def map(self, x_NLD: Tensor) -> Tensor:
        x_NLD = F.gelu(self.norm1(self.linear_proj(x_NLD)))
        wide = F.silu(self.gate_proj(x_NLD)) * self.dense_h_to_4h(x_NLD)
        found: Tensor = self.dense_4h_to_h(wide)
        return found
