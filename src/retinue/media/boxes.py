"""Boxes, points and poses as text and on pictures: conventions, printing, parsing, drawing.

A shape is a flat tuple x1, y1, x2, y2, ...: two numbers are a point, four a box (left, top, right,
bottom). In pixels the origin is the top left corner of the picture; `size` is (height, width).

Conventions of the numbers:
    square     0..1 of the picture padded to a square, centred (SPHINX, LLaVA-1.5)
    square100  the same in hundredths
    unit       0..1 of the picture's own sides
    thousand   0..1000 of the picture's own sides (Qwen-VL)
    pixels     pixels of the picture
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Convention = Literal["square", "square100", "unit", "thousand", "pixels"]
Shape = tuple[float, ...]
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Size = tuple[int, int]

COLOURS = ("red", "blue", "green", "purple", "orange")
KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""The seventeen joints of COCO; left and right are the person's own."""
SKELETON = (
    ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"), ("left_hip", "right_hip"), ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"), ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"), ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"), ("left_eye", "right_eye"),
    ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"),
    ("right_eye", "right_ear"), ("left_ear", "left_shoulder"), ("right_ear", "right_shoulder"),
)  # fmt: skip
"""COCO's limbs."""

_GROUP = re.compile(r"(?:<p>(?P<phrase>.*?)</p>\s*)?\[(?P<body>[-\d.,;\s]*)\]")
_NAMED = re.compile(r"([A-Za-z][A-Za-z _]*?)\s*(?:</p>)?\s*\[([-\d.,\s]*)\]")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How shapes are written: the convention, digits after the point, text between numbers."""

    convention: Convention
    digits: int = 0
    separator: str = ","


STYLES: Mapping[str, Style] = {
    "sphinx": Style(convention="square", digits=3),
    "llava": Style(convention="square", digits=2),
    "compact": Style(convention="square100", separator=" "),
    "thousand": Style(convention="thousand"),
    "pixels": Style(convention="pixels"),
}
"""`sphinx` is how SPHINX answers; `compact` costs six tokens where numbers are tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One bracket of an answer: its shapes, the phrase before it, its place in the text."""

    shapes: tuple[Shape, ...]
    phrase: str = ""
    start: int = 0
    end: int = 0


def _frame(convention: Convention, size: Size) -> tuple[float, float, float, float]:
    """x = (pixel + offset_x) * scale_x, and the same for y."""
    height, width = size
    if convention == "pixels":
        return 0.0, 0.0, 1.0, 1.0
    if convention in ("unit", "thousand"):
        full = 1.0 if convention == "unit" else 1000.0
        return 0.0, 0.0, full / width, full / height
    side = max(height, width)
    full = 1.0 if convention == "square" else 100.0
    return float((side - width) // 2), float((side - height) // 2), full / side, full / side


def from_pixels(shape: Shape, *, convention: Convention, size: Size) -> Shape:
    """Pixels of a (height, width) picture -> numbers of a convention."""
    dx, dy, sx, sy = _frame(convention, size)
    return tuple((v + (dy if i % 2 else dx)) * (sy if i % 2 else sx) for i, v in enumerate(shape))


def to_pixels(shape: Shape, *, convention: Convention, size: Size) -> Shape:
    """Numbers of a convention -> pixels of a (height, width) picture."""
    dx, dy, sx, sy = _frame(convention, size)
    return tuple(v / (sy if i % 2 else sx) - (dy if i % 2 else dx) for i, v in enumerate(shape))


def convert(shape: Shape, *, source: Convention, target: Convention, size: Size) -> Shape:
    """The same shape in another convention."""
    pixels = to_pixels(shape, convention=source, size=size)
    return from_pixels(pixels, convention=target, size=size)


def write(shapes: Iterable[Shape], *, size: Size, style: str | Style = "sphinx") -> str:
    """Pixel shapes as one bracket, `;` between shapes: `[0.125,0.250,0.500,0.750;...]`."""
    how = STYLES[style] if isinstance(style, str) else style
    texts = []
    for shape in shapes:
        numbers = from_pixels(shape, convention=how.convention, size=size)
        texts.append(how.separator.join(f"{number:.{how.digits}f}" for number in numbers))
    return f"[{';'.join(texts)}]"


def parse(text: str) -> list[Region]:
    """Every bracket of numbers in reading order, as written; brackets with other text are left."""
    regions = []
    for match in _GROUP.finditer(text):
        groups = [_numbers(group) for group in match["body"].split(";")]
        regions.append(
            Region(
                shapes=tuple(group for group in groups if group),
                phrase=(match["phrase"] or "").strip(),
                start=match.start(),
                end=match.end(),
            )
        )
    return [region for region in regions if region.shapes]


def parse_boxes(text: str) -> list[Box]:
    """All groups of four numbers in the text, as written."""
    shapes = [shape for region in parse(text) for shape in region.shapes]
    return [(s[0], s[1], s[2], s[3]) for s in shapes if len(s) == 4]


def read(text: str, *, size: Size, style: str | Style = "sphinx") -> list[Shape]:
    """All shapes of a text in pixels: the inverse of `write` up to its digits."""
    how = STYLES[style] if isinstance(style, str) else style
    shapes = [shape for region in parse(text) for shape in region.shapes if len(shape) % 2 == 0]
    return [to_pixels(shape, convention=how.convention, size=size) for shape in shapes]


def write_pose(
    joints: Mapping[str, Point], *, size: Size, style: str | Style = "sphinx", tags: bool = True
) -> str:
    """Named pixel points: `<p>left knee</p>[0.300,0.400] ...`; without tags `left knee[...]`."""
    around = ("<p>", "</p>") if tags else ("", "")
    return " ".join(
        f"{around[0]}{name.replace('_', ' ')}{around[1]}{write([point], size=size, style=style)}"
        for name, point in joints.items()
    )


def parse_pose(text: str) -> dict[str, Point]:
    """Named points, tagged or not, as written; names with underscores, the first of a name wins."""
    joints: dict[str, Point] = {}
    for match in _NAMED.finditer(text.replace("<p>", " ")):
        numbers = _numbers(match[2])
        name = "_".join(match[1].lower().split())
        if len(numbers) == 2:
            joints.setdefault(name, (numbers[0], numbers[1]))
    return joints


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes in the same convention; an empty box has none."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    inner = max(0.0, across) * max(0.0, down)
    areas = [max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1]) for b in (first, second)]
    union = sum(areas) - inner
    return inner / union if inner > 0 and union > 0 else 0.0


def draw(
    image: Image.Image,
    text: str,
    *,
    style: str | Style = "sphinx",
    width: int = 2,
    radius: int = 5,
) -> Image.Image:
    """A copy of the picture with the boxes, points and limbs that an answer names.

    One colour per bracket, in turn; four numbers are a rectangle, two a dot; named joints are
    joined by COCO's limbs. Other numbers of coordinates are no shape and are left out.
    """
    how = STYLES[style] if isinstance(style, str) else style
    size = (image.height, image.width)
    canvas = image.convert("RGB")
    pen = ImageDraw.Draw(canvas)
    for index, region in enumerate(parse(text)):
        colour = COLOURS[index % len(COLOURS)]
        for shape in region.shapes:
            pixels = to_pixels(shape, convention=how.convention, size=size)
            if len(shape) == 4:
                x1, y1, x2, y2 = pixels
                corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
                pen.rectangle(corners, outline=colour, width=width)
            elif len(shape) == 2:
                x, y = pixels
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    joints = parse_pose(text)
    for start, end in SKELETON:
        if start in joints and end in joints:
            ends = to_pixels(joints[start] + joints[end], convention=how.convention, size=size)
            pen.line(ends, fill="green", width=width + 1)
    return canvas


def _numbers(text: str) -> Shape:
    return tuple(float(number) for number in _NUMBER.findall(text))
