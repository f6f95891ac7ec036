"""Scene: what a TinyWorld picture holds, as plain data, sampled from a seeded generator.

Coordinates are pixels (x to the right, y down), rounded to hundredths, so that a scene is the same
on every platform. No two objects of a scene share both colour and shape: "the red square" always
names one object. Objects stand in reading order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

from retinue.media.boxes import Box, Point
from retinue.world.options import BACKGROUNDS, COLOURS, LETTERS, WorldOptions
from retinue.world.poses import sample_joints

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
WORD_COLOURS = ("black", "red", "blue", "green", "purple")
WORD_COLOURS_DARK = ("yellow", "cyan", "pink", "orange")

Cell = tuple[int, int]
Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object; `cell` is (row, column) of the 3x3 grid, `box` the extent of the drawn shape."""

    shape: str
    colour: str
    size: Literal["small", "large"]
    cell: Cell
    box: Box

    @property
    def place(self) -> str:
        return PLACES[self.cell[0]][self.cell[1]]

    @property
    def name(self) -> str:
        """`red square`: names one object of its scene."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """Rendered text; words of one scene differ in colour."""

    text: str
    colour: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A stick figure seen from the front: COCO joint names (no eyes and ears) and their pixels."""

    joints: tuple[tuple[str, Point], ...]
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture before it is drawn; `size` is (height, width), `background` an RGB triple."""

    size: tuple[int, int]
    background: tuple[int, int, int]
    things: tuple[Thing, ...]
    words: tuple[Word, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def relations(self) -> tuple[tuple[Thing, Relation, Thing], ...]:
        """Every true (subject, relation, object), by grid column and row."""
        return tuple(
            (one, relation, other)
            for one in self.things
            for other in self.things
            for relation in RELATIONS
            if holds(one, relation=relation, other=other)
        )

    def having(self, *, shape: str | None = None, colour: str | None = None) -> list[Thing]:
        """The objects of a shape and/or a colour."""
        return [
            thing
            for thing in self.things
            if shape in (None, thing.shape) and colour in (None, thing.colour)
        ]

    def digest(self) -> str:
        """Sixteen hex digits that change with anything in the scene."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def holds(one: Thing, *, relation: Relation, other: Thing) -> bool:
    """Whether `one` stands in that relation to `other`, judged by columns and rows of the grid."""
    rows, columns = one.cell[0] - other.cell[0], one.cell[1] - other.cell[1]
    return {
        "left of": columns < 0,
        "right of": columns > 0,
        "above": rows < 0,
        "below": rows > 0,
    }[relation]


def sample_scene(rng: Random, *, options: WorldOptions) -> Scene:
    """Draw a scene from the options; the same generator state gives the same scene."""
    background = rng.choice(BACKGROUNDS[options.background])
    count = rng.randint(options.min_objects, options.max_objects)
    wide, tall, free = _reserve(rng, words=options.words, figures=options.figures)
    cells = sorted(rng.sample(free, count))
    looks = _looks(rng, count=count, options=options)
    things = [
        _thing(rng, shape=shape, colour=colour, cell=cell, options=options)
        for (shape, colour), cell in zip(looks, cells, strict=True)
    ]
    dark = options.background == "dark"
    inks = rng.sample(WORD_COLOURS_DARK if dark else WORD_COLOURS, len(wide))
    words = [
        _word(rng, colour=ink, pair=pair, options=options)
        for ink, pair in zip(inks, wide, strict=True)
    ]
    figures = [_figure(rng, pair=pair, size=options.size) for pair in tall]
    return Scene(
        size=options.size,
        background=background,
        things=tuple(things),
        words=tuple(words),
        figures=tuple(figures),
    )


Pair = tuple[Cell, Cell]


def _reserve(rng: Random, *, words: int, figures: int) -> tuple[list[Pair], list[Pair], list[Cell]]:
    """Two neighbouring cells for each word (a row) and figure (a column), and the cells left."""
    rows: list[Pair] = [((r, c), (r, c + 1)) for r in range(3) for c in range(2)]
    columns: list[Pair] = [((r, c), (r + 1, c)) for r in range(2) for c in range(3)]
    while True:  # two words and two figures always fit somehow, not always at the first try
        wide, tall = rng.sample(rows, words), rng.sample(columns, figures)
        used = [cell for pair in (*wide, *tall) for cell in pair]
        if len(set(used)) == len(used):
            break
    free = [(r, c) for r in range(3) for c in range(3) if (r, c) not in used]
    return sorted(wide), sorted(tall), free


def _looks(rng: Random, *, count: int, options: WorldOptions) -> list[tuple[str, str]]:
    """`count` different (shape, colour) pairs, some sharing one of the two."""
    shapes, colours = options.shape_names, list(COLOURS)[: options.colours]
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        shape, colour = rng.choice(shapes), rng.choice(colours)
        if looks and rng.random() < options.repeat:
            other = rng.choice(looks)
            shape, colour = (other[0], colour) if rng.random() < 0.5 else (shape, other[1])
        if (shape, colour) not in looks:
            looks.append((shape, colour))
    rng.shuffle(looks)
    return looks


def _thing(rng: Random, *, shape: str, colour: str, cell: Cell, options: WorldOptions) -> Thing:
    height, width = options.size[0] / 3, options.size[1] / 3
    size: Literal["small", "large"] = "large" if rng.random() < 0.5 else "small"
    side = min(height, width) * options.scale * (1.0 if size == "large" else options.small)
    shift_x, shift_y = (options.jitter * (rng.random() - 0.5) for _ in range(2))
    x = (cell[1] + 0.5) * width + shift_x * (width - side) - side / 2
    y = (cell[0] + 0.5) * height + shift_y * (height - side) - side / 2
    return Thing(
        shape=shape, colour=colour, size=size, cell=cell, box=_rounded((x, y, x + side, y + side))
    )


def _word(rng: Random, *, colour: str, pair: Pair, options: WorldOptions) -> Word:
    letters = LETTERS[: options.letters]
    text = "".join(rng.choice(letters) for _ in range(rng.randint(*options.word_letters)))
    left, top, right, bottom = _extent(pair, size=options.size)
    # a letter is 5 wide and 7 high with a gap of 1
    unit = min((right - left) / (6 * len(text) - 1), (bottom - top) / 9) * options.word_scale
    width, height = unit * (6 * len(text) - 1), unit * 7
    x = left + (right - left - width) * (0.5 + options.jitter * (rng.random() - 0.5))
    y = top + (bottom - top - height) * (0.5 + options.jitter * (rng.random() - 0.5))
    return Word(text=text, colour=colour, box=_rounded((x, y, x + width, y + height)))


def _figure(rng: Random, *, pair: Pair, size: tuple[int, int]) -> Figure:
    left, top, right, bottom = _extent(pair, size=size)
    joints = tuple(
        (name, (round(left + x * (right - left), 2), round(top + y * (bottom - top), 2)))
        for name, (x, y) in sample_joints(rng)
    )
    xs, ys = [point[0] for _, point in joints], [point[1] for _, point in joints]
    return Figure(joints=joints, box=_rounded((min(xs), min(ys), max(xs), max(ys))))


def _extent(pair: Pair, *, size: tuple[int, int]) -> Box:
    height, width = size[0] / 3, size[1] / 3
    (row, column), (last_row, last_column) = pair
    return column * width, row * height, (last_column + 1) * width, (last_row + 1) * height


def _rounded(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = (round(number, 2) for number in numbers)
    return x1, y1, x2, y2
