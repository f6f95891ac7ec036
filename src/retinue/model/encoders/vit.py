"""What CLIP, SigLIP and DINOv2 share: embed, run blocks up to the deepest layer asked for, collect.

Legend: N views, C H W pixels, L tokens, D encoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from retinue.core.errors import ConfigError
from retinue.model.encoders.base import Encoder, EncoderShape, EncoderSpec
from retinue.types import Features


class ViTSpec(EncoderSpec):
    """A vision transformer over square views; mean and std default to its family's."""

    def square(
        self, config: Any, *, prefix: int, mean: Sequence[float], std: Sequence[float]
    ) -> EncoderShape:
        """The shape of a ViT from image_size, patch_size, hidden_size and num_hidden_layers."""
        size, patch = int(config.image_size), int(config.patch_size)
        side = size // patch
        return EncoderShape(
            width=config.hidden_size,
            grid=(side, side),
            prefix=prefix,
            num_layers=config.num_hidden_layers,
            size=(size, size),
            mean=self.mean or tuple(mean),
            std=self.std or tuple(std),
            stream=self.stream,
        )


class ViT(Encoder):
    """Base of encoders built on a transformers vision transformer, kept as child `net`."""

    net: Any

    @abstractmethod
    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        """Hidden state 0: (N, L, D)."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[Callable[..., Any]]:
        """The transformer blocks in order."""

    def finish(self, x_NLD: Tensor) -> Tensor:
        """The final normalisation, for those encoders whose users take it."""
        return x_NLD

    def forward(self, pixels_NCHW: Tensor, *, layers: tuple[int, ...]) -> dict[int, Features]:
        """Hidden states at `layers`, stopping after the deepest one.

        pixels: (N, 3, H, W), normalised. Layer i >= 0 follows i blocks; -1 is the last block's
        output; `FINAL` adds the final norm.
        """
        depth = self.shape.num_layers
        wanted = {layer: resolve(layer, depth) for layer in layers}
        deepest = max(wanted.values())
        x_NLD = self.embed(pixels_NCHW)
        states = {0: x_NLD}
        for number, block in enumerate(self.blocks[: min(deepest, depth)], start=1):
            x_NLD = hidden(block(x_NLD, attention_mask=None))
            if number in wanted.values():
                states[number] = x_NLD
        if deepest > depth:
            states[deepest] = self.finish(x_NLD)
        grid, prefix = self.shape.grid, self.shape.prefix
        return {
            layer: Features(x_NLD=states[place], grid=grid, prefix=prefix)
            for layer, place in wanted.items()
        }


FINAL = 1000
"""The layer number that means: last block's output after the final norm."""


def hidden(output: Any) -> Tensor:
    """A block's hidden state, whether it returns the tensor or a tuple that starts with it."""
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def resolve(layer: int, depth: int) -> int:
    """A layer number as a count of blocks; depth + 1 stands for the final norm."""
    if layer == FINAL:
        return depth + 1
    place = layer if layer >= 0 else depth + 1 + layer
    if not 0 <= place <= depth:
        raise ConfigError(
            f"layer {layer} of an encoder with {depth} blocks",
            rule=f"layers run from 0 (embeddings) to {depth}, or from -1 back to {-depth - 1}",
        )
    return place
