"""One affine map to the language model's width (or to `out`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from retinue.model.connectors.base import ConnectorSpec
from retinue.model.connectors.unary import Unary, UnarySpec
from retinue.model.encoders.base import EncoderShape


class Dense(nn.Linear):
    """nn.Linear that keeps torch's own initialisation (the originals' projectors do).

    std: if set, fresh weights are normal with it and fresh biases zero, as language models begin.
    """

    std: float | None = None

    def reset_parameters(self) -> None:
        if self.std is None:
            super().reset_parameters()
            return
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LinearSpec(UnarySpec):
    """`out`: output width; absent = the language model's. `norm`: a LayerNorm follows."""

    kind: Literal["linear"] = "linear"
    out: int | None = None
    bias: bool = True
    norm: bool = False

    def width(self, shapes: Mapping[str, EncoderShape], lm_width: int) -> int:
        return self.out or lm_width


class Linear(Unary):
    """Affine projection (LLaVA v1's projector, arXiv 2304.08485)."""

    Spec: ClassVar[type[ConnectorSpec]] = LinearSpec

    def __init__(self, spec: LinearSpec, shapes: Mapping[str, EncoderShape], lm_width: int) -> None:
        super().__init__(spec, shapes, lm_width)
        self.net: Any = Dense(
            spec.of.width(shapes, lm_width), spec.width(shapes, lm_width), bias=spec.bias
        )
        self.norm = nn.LayerNorm(spec.width(shapes, lm_width)) if spec.norm else nn.Identity()

    def map(self, x_NLD: Tensor) -> Tensor:
        found: Tensor = self.norm(self.net(x_NLD))
        return found
