"""DINOv2's vision transformer (Oquab et al. 2023, arXiv 2304.07193) on transformers' module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import Dinov2Model, Dinov2WithRegistersModel

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.vit import ViT, ViTSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Dinov2Spec(ViTSpec):
    """`size`: side of a view in pixels, if not the config's; the position table is interpolated."""

    kind: Literal["dinov2"] = "dinov2"
    size: int | None = None

    def shape(self, config: Any) -> EncoderShape:
        prefix = 1 + int(getattr(config, "num_register_tokens", 0) or 0)
        shape = self.square(config, prefix=prefix, mean=MEAN, std=STD)
        if self.size is None:
            return shape
        side = self.size // int(config.patch_size)
        return shape.model_copy(update={"grid": (side, side), "size": (self.size, self.size)})


class Dinov2(ViT):
    """DINOv2 vision transformer: class token, registers if any, then patches (arXiv 2304.07193).

    FINAL is `last_hidden_state` (normalised); other layers are raw, as in `hidden_states`.
    """

    Spec: ClassVar[type[EncoderSpec]] = Dinov2Spec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        registers = config.model_type == "dinov2_with_registers"
        kind = Dinov2WithRegistersModel if registers else Dinov2Model
        self.net = kind(config)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return self.net.embeddings(pixels_NCHW)

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.encoder.layer

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.layernorm(x_NLD)
