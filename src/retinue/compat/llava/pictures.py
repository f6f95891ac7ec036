"""The original's image processor and `process_images`, over the view policies.

Legend: V views, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from retinue.media.image import load_image
from retinue.media.views import StreamSpec, ViewPolicy
from retinue.media.whole import Single
from retinue.model.spec import Plan
from retinue.ops.pixels import normalize
from retinue.processor import Processor
from retinue.types import Grid


class ImageProcessor:
    """Pictures as normalised pixels for one model; the fields of transformers' processors."""

    def __init__(self, processor: Processor) -> None:
        self.plan: Plan = processor.plan
        self.views: ViewPolicy = processor.spec.views
        self.stream: StreamSpec = next(iter(processor.spec.streams.values()))
        height, width = self.stream.size
        self.crop_size = {"height": height, "width": width}
        self.size = {"shortest_edge": max(height, width)}
        self.image_mean, self.image_std = list(self.stream.mean), list(self.stream.std)

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, Any]:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images: Any, return_tensors: str = "pt") -> dict[str, Any]:
        """{"pixel_values": (N, C, H, W)} of a picture or a list: middles cut out, normalised."""
        assert return_tensors == "pt", "tensors are torch's"
        listed = list(images) if isinstance(images, list | tuple) else [images]
        cut = Single(axes="guessed")
        return {"pixel_values": torch.cat([self.pixels(image, policy=cut) for image in listed])}

    def pixels(self, image: Any, *, policy: ViewPolicy | None = None) -> Tensor:
        """Views (V, C, H, W) of one picture, float32. Raises MediaError for one that is broken."""
        views, _ = (policy or self.views).views(load_image(image), self.stream)
        return normalize(
            views, mean=self.stream.mean, std=self.stream.std, rescale=self.stream.rescale
        )

    def grid(self, image_size: tuple[int, int]) -> Grid:
        """How the views of a picture of (width, height) are arranged."""
        width, height = image_size
        return self.views.grid((int(height), int(width)), self.stream)


def process_images(
    images: Sequence[PILImage], image_processor: ImageProcessor, model_cfg: Any = None
) -> Any:
    """Pictures as the loaded model reads them: pad, any resolution or the middle cut out.

    (N, C, H, W) for one view each, (N, V, C, H, W) for equally many tiles, else a list.
    model_cfg: accepted; the image processor knows its model's mode already.
    """
    del model_cfg
    made = [image_processor.pixels(image) for image in images]
    tiled = any(image_processor.grid(image.size).num_views > 1 for image in images)
    if tiled or getattr(image_processor.views, "kind", None) == "anyres":
        return torch.stack(made) if len({part.shape for part in made}) == 1 else made
    return torch.cat(made)
