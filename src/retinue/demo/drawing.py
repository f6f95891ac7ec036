"""An answer's boxes, points, poses and masks on its picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from retinue.compat.sphinx.boxes import show_mask
from retinue.demo.masks import Mask
from retinue.media import boxes
from retinue.media.boxes import COLOURS, STYLES, Box, Style

Segment = Callable[[Image.Image, Sequence[Box]], Sequence[Mask]]
"""Boxes in pixels -> one mask each; `demo.masks.Masks` is one."""


def style_of(text: str) -> Style:
    """The style that an answer's numbers look like.

    All within 0..1: SPHINX's; whole numbers to 100: hundredths; to 1000: thousandths; else pixels.
    """
    numbers = [n for region in boxes.parse(text) for shape in region.shapes for n in shape]
    top = max(numbers, default=0.0)
    if top <= 1:
        return STYLES["sphinx"]
    if top <= 100:
        return STYLES["compact"]
    return STYLES["thousand" if top <= 1000 else "pixels"]


def draw(
    picture: Image.Image,
    answer: str,
    *,
    style: str | Style | None = None,
    segment: Segment | None = None,
) -> Image.Image | None:
    """A copy of the picture with what the answer names; None where it names no place.

    style: how coordinates are written (`media.boxes.STYLES`), None = as they look. segment: draws
    a half transparent mask of every box too, in the colour of its bracket.
    """
    how = style_of(answer) if style is None else STYLES[style] if isinstance(style, str) else style
    regions = boxes.parse(answer)
    if not any(len(shape) in (2, 4) for region in regions for shape in region.shapes):
        return None
    canvas = picture.convert("RGB")
    if segment is not None:
        asked = boxes_of(answer, size=(picture.height, picture.width), style=how)
        masks = segment(canvas, [box for box, _ in asked]) if asked else []
        for mask, (_, colour) in zip(masks, asked, strict=True):
            canvas = show_mask(canvas, mask, colour)
    return boxes.draw(canvas, answer, style=how)


def boxes_of(text: str, *, size: tuple[int, int], style: Style) -> list[tuple[Box, str]]:
    """Boxes of an answer in pixels of a (height, width) picture, each with its bracket's colour.

    Cut to the picture; a box with nothing inside it is left out.
    """
    height, width = size
    found: list[tuple[Box, str]] = []
    for index, region in enumerate(boxes.parse(text)):
        for shape in region.shapes:
            if len(shape) != 4:
                continue
            x1, y1, x2, y2 = boxes.to_pixels(shape, convention=style.convention, size=size)
            box = (
                *(max(0.0, min(x1, x2)), max(0.0, min(y1, y2))),
                *(min(float(width), max(x1, x2)), min(float(height), max(y1, y2))),
            )
            if box[0] < box[2] and box[1] < box[3]:
                found.append((box, COLOURS[index % len(COLOURS)]))
    return found
