"""The encoder seam: pixels of one stream in, features out.

Legend: N views, C H W pixels, L tokens, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, SerializeAsAny
from torch import Tensor, nn

from retinue.core.spec import Spec
from retinue.model.encoders import ENCODERS
from retinue.model.encoders.adapt import Adapt
from retinue.ops.pixels import normalize
from retinue.types import Features


class EncoderShape(Spec):
    """What the rest of the path must know of an encoder, without its weights.

    width: of one token; grid: (rows, cols) of patch tokens; prefix: tokens before them (class,
    registers); num_layers: blocks, so that `layer: -2` means the same everywhere; stream: the pixel
    stream it reads; size: side (height, width) of a view in pixels; mean, std: of its normalisation
    in units of 0..1.
    """

    width: int
    grid: tuple[int, int]
    prefix: int
    num_layers: int
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stream: str = "rgb"


class EncoderSpec(Spec):
    """What a YAML file says of an encoder; sizes come from the backbone's own config.

    adapt: steps from the pixels of its stream to what it reads, where the two differ.
    """

    kind: str
    stream: str = "rgb"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    adapt: Adapt | None = None

    @abstractmethod
    def shape(self, config: Any) -> EncoderShape:
        """Sizes, from the transformers config of the backbone alone."""


class Encoder(nn.Module):
    """Base of all encoders. `forward` returns one Features per layer asked for.

    config: the transformers config of the backbone; layers: indices as in `hidden_states`
    (0 = embeddings, -1 = last block output); work stops after the last one asked for.
    """

    Spec: ClassVar[type[EncoderSpec]]

    def __init__(self, spec: EncoderSpec, config: Any) -> None:
        super().__init__()
        self.spec, self.shape = spec, spec.shape(config)

    def pixels(self, stream_NCHW: Tensor, *, dtype: torch.dtype) -> Tensor:
        """What this encoder reads, from the pixels of its stream: grey levels, or floats."""
        mean, std = self.shape.mean, self.shape.std
        if self.spec.adapt is None:
            return normalize(stream_NCHW, mean=mean, std=std, dtype=dtype)
        plain = normalize(stream_NCHW, mean=mean, std=std)
        final = stream_NCHW.is_floating_point()
        return self.spec.adapt(plain, final=final, mean=mean, std=std).to(dtype)

    @abstractmethod
    def forward(self, pixels_NCHW: Tensor, *, layers: tuple[int, ...]) -> dict[int, Features]:
        """Features with all tokens, `prefix` ones included: {layer: (N, prefix + rows*cols, D)}."""


EncoderField = Annotated[SerializeAsAny[EncoderSpec], BeforeValidator(ENCODERS.spec_of)]
