"""CLIP's vision transformer (Radford et al. 2021, arXiv 2103.00020) on transformers' module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import CLIPVisionModel

from retinue.core.errors import ConfigError
from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.vit import ViT, ViTSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipSpec(ViTSpec):
    """`size`: side of a view in pixels, if not the config's; the position table is interpolated."""

    kind: Literal["clip"] = "clip"
    size: int | None = None

    def shape(self, config: Any) -> EncoderShape:
        shape = self.square(config, prefix=1, mean=MEAN, std=STD)
        if self.size is None:
            return shape
        side, rest = divmod(self.size, int(config.patch_size))
        if rest:
            raise ConfigError(
                f"views of {self.size} pixels",
                where="model.encoders",
                rule=f"a multiple of the patch, {config.patch_size}",
            )
        return shape.model_copy(update={"grid": (side, side), "size": (self.size, self.size)})


class Clip(ViT):
    """CLIP vision transformer: class token, then patches (arXiv 2103.00020).

    The usual LLaVA reading is layer -2 without the class token; no layer but FINAL is normalised.
    """

    Spec: ClassVar[type[EncoderSpec]] = ClipSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net = CLIPVisionModel(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        own = self.net.embeddings
        other = self.shape.size != (own.image_size, own.image_size)
        x_NLD: Tensor = self.net.pre_layrnorm(own(pixels_NCHW, interpolate_pos_encoding=other))
        return x_NLD

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.encoder.layers

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.post_layernorm(x_NLD)
