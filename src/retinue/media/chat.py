"""What LLaVA's demo does to a picture before it is shown or sent (Conversation.process_image)."""

from __future__ import annotations

from typing import Literal

from PIL import Image
from PIL.Image import Image as PILImage

from retinue.media.resize import Size, colour_of, letterbox, size_of
from retinue.media.views import CLIP_MEAN

ChatMode = Literal["Pad", "Resize", "Default", "Crop"]


def chat_image_size(
    size: Size, *, mode: ChatMode, longest: int = 1344, shortest: int = 672, side: int = 336
) -> Size:
    """(height, width) after `chat_image`.

    Pictures longer than `longest` shrink so that their shorter side is at most `shortest`; mode Pad
    makes a square first, Resize a square of `side`.
    """
    height, width = _canvas(size, mode=mode, side=side)
    if max(height, width) <= longest:
        return height, width
    aspect = max(height, width) / min(height, width)
    short = int(min(longest / aspect, shortest, height, width))
    long = int(short * aspect)
    return (long, short) if height > width else (short, long)


def chat_image(
    image: PILImage,
    *,
    mode: ChatMode,
    longest: int = 1344,
    shortest: int = 672,
    side: int = 336,
) -> PILImage:
    """The picture as LLaVA's demo sends it: see `chat_image_size`; padded with CLIP's mean."""
    size = chat_image_size(size_of(image), mode=mode, longest=longest, shortest=shortest, side=side)
    canvas = _canvas(size_of(image), mode=mode, side=side)
    if mode == "Pad":
        padded = letterbox(image, canvas, colour=colour_of(CLIP_MEAN))
        assert isinstance(padded, Image.Image)
        image = padded
    elif mode == "Resize":
        image = image.resize((side, side))
    return image if size_of(image) == size else image.resize((size[1], size[0]))


def _canvas(size: Size, *, mode: ChatMode, side: int) -> Size:
    if mode == "Pad":
        return max(size), max(size)
    return (side, side) if mode == "Resize" else size
