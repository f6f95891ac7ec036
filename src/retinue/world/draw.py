"""Scenes to pictures: PIL polygons on a canvas several times as large, averaged down."""

from __future__ import annotations

from PIL import Image, ImageDraw

from retinue.media.boxes import SKELETON, Point
from retinue.world.glyphs import GLYPHS
from retinue.world.options import COLOURS
from retinue.world.outlines import OUTLINES, RING_HOLE
from retinue.world.scene import Figure, Scene, Thing, Word

SUPERSAMPLE = 4


def draw_scene(scene: Scene, *, supersample: int = SUPERSAMPLE) -> Image.Image:
    """The RGB picture of a scene, (height, width) = scene.size, edges anti-aliased."""
    height, width = scene.size
    canvas = Image.new("RGB", (width * supersample, height * supersample), scene.background)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _thing(pen, thing, background=scene.background, scale=supersample)
    for word in scene.words:
        _word(pen, word, scale=supersample)
    for figure in scene.figures:
        _figure(pen, figure, ink=_ink(scene), scale=supersample)
    return canvas if supersample == 1 else canvas.reduce(supersample)


def _thing(
    pen: ImageDraw.ImageDraw, thing: Thing, *, background: tuple[int, int, int], scale: int
) -> None:
    left, top, right, bottom = (scale * number for number in thing.box)
    side_x, side_y = right - left, bottom - top
    if thing.shape in GLYPHS:
        _glyph(pen, thing.shape, (left, top), (side_x / 5, side_y / 7), COLOURS[thing.colour])
        return

    def place(points: tuple[Point, ...], shrink: float) -> list[Point]:
        margin = (1 - shrink) / 2
        # PIL paints the pixel a coordinate falls into, so the far edge is half a pixel in
        return [
            (
                left + (margin + shrink * x) * side_x - 0.5,
                top + (margin + shrink * y) * side_y - 0.5,
            )
            for x, y in points
        ]

    outline = OUTLINES[thing.shape]
    pen.polygon(place(outline, 1.0), fill=COLOURS[thing.colour])
    if thing.shape == "ring":
        pen.polygon(place(outline, RING_HOLE), fill=background)


def _word(pen: ImageDraw.ImageDraw, word: Word, *, scale: int) -> None:
    left, top, _, bottom = (scale * number for number in word.box)
    unit = (bottom - top) / 7
    for index, letter in enumerate(word.text):
        _glyph(pen, letter, (left, top), (unit, unit), COLOURS[word.colour], first=6 * index)


def _glyph(
    pen: ImageDraw.ImageDraw,
    letter: str,
    corner: Point,
    unit: Point,
    ink: tuple[int, int, int],
    *,
    first: int = 0,
) -> None:
    """A letter of 5 x 7 marks that are `unit` wide and high, `first` of them to the right."""
    for row, line in enumerate(GLYPHS[letter]):
        for column, mark in enumerate(line):
            if mark == "#":
                x, y = corner[0] + (first + column) * unit[0], corner[1] + row * unit[1]
                pen.rectangle((x, y, x + unit[0] - 0.5, y + unit[1] - 0.5), fill=ink)


def _figure(
    pen: ImageDraw.ImageDraw, figure: Figure, *, ink: tuple[int, int, int], scale: int
) -> None:
    joints = {name: (scale * x, scale * y) for name, (x, y) in figure.joints}
    height = scale * (figure.box[3] - figure.box[1])
    stroke = max(scale, round(0.045 * height))
    nose, neck = joints["nose"], _between(joints["left_shoulder"], joints["right_shoulder"])
    limbs = [(joints[a], joints[b]) for a, b in SKELETON if a in joints and b in joints]
    for start, end in [*limbs, (nose, neck)]:
        pen.line((*start, *end), fill=ink, width=stroke)
    for x, y in joints.values():
        pen.ellipse((x - stroke / 2, y - stroke / 2, x + stroke / 2, y + stroke / 2), fill=ink)
    radius = 0.1 * height
    pen.ellipse((nose[0] - radius, nose[1] - radius, nose[0] + radius, nose[1] + radius), fill=ink)


def _between(one: Point, other: Point) -> Point:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


def _ink(scene: Scene) -> tuple[int, int, int]:
    return (40, 40, 40) if sum(scene.background) > 384 else (225, 225, 225)
