"""The view-policy seam: one picture in, the views that the encoders of a stream read out.

Legend: V views, C H W pixels. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator
from torch import Tensor

from retinue.core.spec import OwnSpec, Spec
from retinue.media import VIEWS
from retinue.media.resize import (
    Interpolation,
    Mode,
    Picture,
    Size,
    in_mode,
    resize,
    resize_middle,
)
from retinue.types import Grid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class StreamSpec(Spec):
    """How one pixel stream is prepared.

    size: (height, width) of a view in pixels, one number for a square; mean, std: per channel in
    units of 0..1; rescale: factor from grey levels to those units; mode: `exact` (Pillow) or
    `fast` (torch, at most one grey level away).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = Field(default=1 / 255, gt=0)
    mode: Mode = "exact"
    interpolation: Interpolation = "bicubic"

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if min(self.size) < 1 or min(self.std) <= 0:
            raise ValueError("size and std must be positive")
        return self

    def prepare(self, picture: Picture) -> Picture:
        """The picture as the kind that this stream's mode works on."""
        return in_mode(picture, self.mode)

    def resize(self, picture: Picture, size: Size) -> Picture:
        """Resample with this stream's filter."""
        return resize(picture, size, interpolation=self.interpolation)

    def resize_middle(self, picture: Picture, size: Size) -> Picture:
        """The middle of it, as large as a view of this stream."""
        return resize_middle(picture, size, middle=self.size, interpolation=self.interpolation)


class ViewPolicy(OwnSpec):
    """Base of all policies. A policy is its own Spec, so that a registry entry is one class.

    `views` and `grid` always agree; `grid` needs no pixel, so lengths come from image headers.
    """

    kind: str

    stored: ClassVar[bool] = False
    """Whether the policy wants pictures in the colours of their file."""

    @abstractmethod
    def views(self, image: Picture, stream: StreamSpec) -> tuple[Tensor, Grid]:
        """Views (V, C, H, W) of an upright RGB picture, and how they are arranged.

        uint8 pixels, to be normalised by the model; floats mean that they are final already.
        Raises MediaError for pictures too long and thin for the policy.
        """

    @abstractmethod
    def grid(self, size: Size, stream: StreamSpec) -> Grid:
        """The arrangement for a picture of `size` (height, width); raises as `views` does."""


ViewPolicyField = Annotated[SerializeAsAny[ViewPolicy], BeforeValidator(VIEWS.spec_of)]
