"""What the original's demo makes of an answer with boxes: objects, coloured text, a drawing.

`retinue.media.boxes` reads more than this (integers, any convention) and in reading order; here
matches count from the right, phrases first, as in the demo.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from retinue.media.boxes import COLOURS, SKELETON

BODY = r"[\d.,; ]*"
PHRASE = re.compile(rf"<p>(.*?)</p>\s*\[({BODY})\]")
BARE = re.compile(rf"\[({BODY})\]")
NUMBER = re.compile(r"\d+\.\d+")
ALPHA = 127
"""Of a mask, of 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One bracket: its phrase, groups of numbers 0..1 of the padded square, its colour."""

    phrase: str
    groups: list[list[float]]
    colour: str


def parse_answer(text: str) -> tuple[list[Found], str]:
    """The objects of an answer and its text with every match in a coloured span."""
    found: list[Found] = []
    spans: list[tuple[int, int, str]] = []
    turn = 0
    for pattern in (PHRASE, BARE):
        taken = list(spans)
        for match in reversed(list(pattern.finditer(text))):
            start, end = match.span()
            if any(start < stop and begin < end for begin, stop, _ in taken):
                continue
            phrase = match[1] if pattern is PHRASE else ""
            body = match[match.lastindex or 1]
            colour = COLOURS[turn % len(COLOURS)]
            turn += int(pattern is PHRASE)  # bare brackets share the colour after the phrases'
            groups = [[float(n) for n in NUMBER.findall(one)] for one in body.split(";")]
            found.append(Found(phrase=phrase, groups=groups, colour=colour))
            spans.append((start, end, f'<span style="color:{colour}">{phrase}[{body}]</span>'))
    for start, end, shown in sorted(spans, reverse=True):
        text = text[:start] + shown + text[end:]
    return found, text


def placed(group: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Numbers 0..1 of the padded square as pixels of a (height, width) picture."""
    height, width = size
    side = max(size)
    offsets = ((side - width) // 2, (side - height) // 2)
    return [number * side - offsets[place % 2] for place, number in enumerate(group)]


def pixel_boxes(found: Sequence[Found], size: tuple[int, int]) -> list[list[int]]:
    """Whole-numbered boxes of a picture, as a segmenter is asked with."""
    return [
        [int(number) for number in placed(group, size)]
        for one in found
        for group in one.groups
        if len(group) == 4
    ]


def draw_answer(image: Image.Image, found: Sequence[Found]) -> Image.Image:
    """A copy with rectangles, dots, and limbs between dots that are named as joints."""
    canvas = image.convert("RGB").copy()
    pen = ImageDraw.Draw(canvas)
    size = (canvas.height, canvas.width)
    joints: dict[str, tuple[float, float]] = {}
    for one in found:
        for group in one.groups:
            numbers = placed(group, size)
            if len(numbers) == 4:
                pen.rectangle(numbers, outline=one.colour, width=2)
            elif len(numbers) == 2:
                x, y = numbers
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=one.colour)
                joints[one.phrase.replace(" ", "_")] = (x, y)
    for start, end in SKELETON:
        if start in joints and end in joints:
            pen.line([joints[start], joints[end]], fill="green", width=3)
    return canvas


def show_mask(image: Image.Image, mask: np.ndarray, colour: str) -> Image.Image:
    """A copy with a boolean (height, width) mask laid over it in a colour, half transparent."""
    levels = np.zeros((*mask.shape, 4), dtype=np.uint8)
    levels[mask] = (*ImageColor.getrgb(colour)[:3], ALPHA)
    overlay = Image.fromarray(levels, mode="RGBA")
    return Image.alpha_composite(image.convert("RGBA"), overlay).convert("RGB")
