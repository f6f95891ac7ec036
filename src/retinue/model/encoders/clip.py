"""CLIP's vision transformer (Radford et al. 2021, arXiv 2103.00020) on transformers' module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import CLIPVisionModel

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.vit import ViT, ViTSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipSpec(ViTSpec):
    kind: Literal["clip"] = "clip"

    def shape(self, config: Any) -> EncoderShape:
        return self.square(config, prefix=1, mean=MEAN, std=STD)


class Clip(ViT):
    """CLIP vision transformer: class token, then patches (arXiv 2103.00020).

    The usual LLaVA reading is layer -2 without the class token; no layer but FINAL is normalised.
    """

    Spec: ClassVar[type[EncoderSpec]] = ClipSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = CLIPVisionModel(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        x_NLD: Tensor = self.net.pre_layrnorm(self.net.embeddings(pixels_NCHW))
        return x_NLD

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.encoder.layers

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.post_layernorm(x_NLD)
