"""BLIP-2's vision transformer, EVA ViT-g (Li et al. 2023, arXiv 2301.12597), on transformers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import Blip2VisionModel

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.clip import MEAN, STD
from retinue.model.encoders.vit import ViT, ViTSpec


class Blip2Spec(ViTSpec):
    kind: Literal["blip2"] = "blip2"

    def shape(self, config: Any) -> EncoderShape:
        return self.square(config, prefix=1, mean=MEAN, std=STD)


class Blip2(ViT):
    """BLIP-2's vision transformer: class token, then patches; FINAL is what its Q-Former reads."""

    Spec: ClassVar[type[EncoderSpec]] = Blip2Spec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = Blip2VisionModel(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        x_NLD: Tensor = self.net.embeddings(pixels_NCHW)
        return x_NLD

    @property
    def blocks(self) -> Sequence[Callable[..., Any]]:
        """Its blocks take no mask, not even none."""
        return [
            lambda x_NLD, attention_mask=None, block=block: block(x_NLD)
            for block in self.net.encoder.layers
        ]

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.post_layernorm(x_NLD)
