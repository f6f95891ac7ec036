"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) on transformers' module, as CLIP's tower too.

Legend: N views, C H W pixels, L cells, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import ConvNextModel

from retinue.core.errors import ConfigError
from retinue.model.encoders.base import Encoder, EncoderShape, EncoderSpec
from retinue.model.encoders.clip import MEAN, STD
from retinue.model.encoders.vit import FINAL
from retinue.types import Features

STRIDE = 8
"""What the stages after the stem divide a side by."""


class ConvNextSpec(EncoderSpec):
    """`size`: side of a view in pixels; a convolutional net takes any multiple of its stride."""

    kind: Literal["convnext"] = "convnext"
    size: int = 256

    def shape(self, config: Any) -> EncoderShape:
        step = int(config.patch_size) * STRIDE
        if self.size % step:
            raise ConfigError(
                f"a view of {self.size} pixels", where="encoder", rule=f"a multiple of {step}"
            )
        return EncoderShape(
            width=config.hidden_sizes[-1],
            grid=(self.size // step, self.size // step),
            prefix=0,
            num_layers=len(config.hidden_sizes),
            size=(self.size, self.size),
            mean=self.mean or MEAN,
            std=self.std or STD,
            stream=self.stream,
        )


class ConvNext(Encoder):
    """Convolutional tower: the last stage's cells, row by row (ConvNeXt-XXL of OpenCLIP).

    Layer -1 is the last stage's map, FINAL the same with the head's norm at every cell. A config
    with `block_norm_eps` has that in the norms inside, which the published nets differ in.
    """

    Spec: ClassVar[type[EncoderSpec]] = ConvNextSpec

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__(spec, config)
        self.net: Any = ConvNextModel(config)
        eps = getattr(config, "block_norm_eps", None)
        if eps is not None:
            for module in (*self.net.embeddings.modules(), *self.net.encoder.modules()):
                if isinstance(module, nn.LayerNorm):
                    module.eps = float(eps)

    def forward(self, pixels_NCHW: Tensor, *, layers: tuple[int, ...]) -> dict[int, Features]:
        depth = self.shape.num_layers
        odd = sorted(set(layers) - {-1, depth, FINAL})
        if odd:
            raise ConfigError(
                f"layer {odd[0]} of a ConvNeXt",
                rule=f"its stages differ in size; take -1 (the last stage) or {FINAL} (normalised)",
            )
        x_NDHW = self.net.embeddings(pixels_NCHW)
        for stage in self.net.encoder.stages:
            x_NDHW = stage(x_NDHW)
        x_NLD = x_NDHW.flatten(2).transpose(1, 2)
        grid = (int(x_NDHW.shape[2]), int(x_NDHW.shape[3]))
        return {
            layer: Features(x_NLD=self.net.layernorm(x_NLD) if layer == FINAL else x_NLD, grid=grid)
            for layer in layers
        }
