"""SigLIP's vision transformer (Zhai et al. 2023, arXiv 2303.15343) on transformers' module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import SiglipVisionModel

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.vit import ViT, ViTSpec

HALF = (0.5, 0.5, 0.5)


class SiglipSpec(ViTSpec):
    kind: Literal["siglip"] = "siglip"

    def shape(self, config: Any) -> EncoderShape:
        return self.square(config, prefix=0, mean=HALF, std=HALF)


class Siglip(ViT):
    """SigLIP vision transformer: patches only, no class token (arXiv 2303.15343).

    Fixed-resolution SigLIP 2 checkpoints declare the same class.
    """

    Spec: ClassVar[type[EncoderSpec]] = SiglipSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = SiglipVisionModel(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return self.net.embeddings(pixels_NCHW)

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.encoder.layers

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.post_layernorm(x_NLD)
