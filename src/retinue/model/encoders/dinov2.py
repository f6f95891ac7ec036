"""DINOv2's vision transformer (Oquab et al. 2023, arXiv 2304.07193) on transformers' module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Dinov2Model, Dinov2WithRegistersModel

from retinue.model.encoders.base import EncoderShape, EncoderSpec
from retinue.model.encoders.vit import ViT, ViTSpec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Dinov2Spec(ViTSpec):
    """`size`: side of a view in pixels, if not the config's; the position table is interpolated.

    offset: what is added to the side's number of patches for the scale of that interpolation; the
    published code adds 0.1 against rounding, which shifts the table by some of a cell.
    """

    kind: Literal["dinov2"] = "dinov2"
    size: int | None = None
    offset: float = 0.0

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
        self.net: Any = kind(config)
        self.offset = 0.0 if registers else float(getattr(spec, "offset", 0.0))

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        own: Any = self.net.embeddings
        if not self.offset:
            found: Tensor = own(pixels_NCHW)
            return found
        patches_NLD = own.patch_embeddings(pixels_NCHW)
        cls_N1D = own.cls_token.expand(len(patches_NLD), -1, -1)
        added: Tensor = torch.cat([cls_N1D, patches_NLD], dim=1) + self.positions
        return added

    @property
    def positions(self) -> Tensor:
        """(1, 1 + L, D): the table at this view's grid, its scale shifted by `offset`."""
        table_1LD = self.net.embeddings.position_embeddings
        side = int((table_1LD.shape[1] - 1) ** 0.5)
        rows, cols = self.shape.grid
        if (rows, cols) == (side, side):
            return table_1LD
        grid_1DRC = table_1LD[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = [(rows + self.offset) / side, (cols + self.offset) / side]
        grid_1DRC = interpolate(grid_1DRC, scale_factor=scale, mode="bicubic")
        assert grid_1DRC.shape[-2:] == (rows, cols), "the offset is too large"
        patches_1LD = grid_1DRC.flatten(2).transpose(1, 2).to(table_1LD.dtype)
        return torch.cat([table_1LD[:, :1], patches_1LD], dim=1)

    @property
    def blocks(self) -> Sequence[Any]:
        return self.net.encoder.layer

    def finish(self, x_NLD: Tensor) -> Tensor:
        return self.net.layernorm(x_NLD)
