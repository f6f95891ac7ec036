"""WorldOptions: what a TinyWorld picture may hold and how its questions are worded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from retinue.core.spec import Spec

SHAPES = (
    "circle",
    "square",
    "triangle",
    "cross",
    "star",
    "ring",
    "diamond",
    "heart",
    "moon",
    "arrow",
)
"""In the order in which `shapes: n` takes them."""

COLOURS = {
    "red": (222, 30, 36),
    "green": (24, 152, 54),
    "blue": (28, 66, 222),
    "yellow": (246, 206, 12),
    "purple": (132, 32, 158),
    "orange": (250, 126, 12),
    "cyan": (20, 196, 208),
    "pink": (250, 112, 178),
    "brown": (120, 68, 28),
    "black": (16, 16, 16),
}
"""Name -> RGB, in the order in which `colours: n` takes them."""

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"  # without I O Q 0 1, which look like others
"""In the order in which `letters: n` takes them."""

BACKGROUNDS = {
    "light": ((255, 255, 255), (238, 238, 238), (252, 244, 228), (230, 240, 250)),
    "dark": ((44, 46, 58), (58, 54, 52), (36, 52, 48), (52, 52, 52)),
}

CELLS = 9


class WorldOptions(Spec):
    """What a picture may hold. Lengths are fractions of a cell of the 3x3 grid.

    size: (height, width) in pixels; one number stands for a square
    min_objects, max_objects: how many objects, all numbers equally often
    objects: what they are, shapes or letters ("red A")
    shapes, colours: how many of the names of SHAPES and COLOURS are used
    skip_shapes: so many of these shapes, the first ones, are never drawn
    scale: diameter of a large object; small: small diameter / large diameter
    jitter: how much of the free room of its cell an object may use (0 = always in the middle)
    repeat: chance that an object shares its colour or its shape with another one
    words, word_letters, word_scale: rendered words in each picture, letters (least, most), width
    letters: how many of the letters words are made of, or objects are
    figures: stick figures in each picture; a word or a figure takes two cells
    boxes: style of retinue.media.boxes in which coordinates are written
    inline: pictures that are asked about together follow the question, each behind its number
    place_first: a box asked for is answered with its place before it: `top left [1 2 30 31]`
    prompts: `short` for tiny models, `llava` for the prompts of LLaVA and SPHINX
    """

    size: tuple[int, int] = (64, 64)
    min_objects: Annotated[int, Field(ge=0, le=CELLS)] = 1
    max_objects: Annotated[int, Field(ge=1, le=CELLS)] = 4
    objects: Literal["shapes", "letters"] = "shapes"
    shapes: Annotated[int, Field(ge=1, le=len(SHAPES))] = 8
    skip_shapes: Annotated[int, Field(ge=0, lt=len(SHAPES))] = 0
    colours: Annotated[int, Field(ge=1, le=len(COLOURS))] = 8
    scale: Annotated[float, Field(gt=0.1, le=1.0)] = 0.92
    small: Annotated[float, Field(gt=0.1, lt=1.0)] = 0.64
    jitter: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    repeat: Annotated[float, Field(ge=0.0, le=1.0)] = 0.3
    words: Annotated[int, Field(ge=0, le=2)] = 0
    word_letters: tuple[int, int] = (2, 4)
    letters: Annotated[int, Field(ge=2, le=len(LETTERS))] = len(LETTERS)
    word_scale: Annotated[float, Field(gt=0.1, le=1.0)] = 0.95
    figures: Annotated[int, Field(ge=0, le=2)] = 0
    background: Literal["light", "dark"] = "light"
    boxes: Literal["sphinx", "llava", "compact"] = "compact"
    inline: bool = False
    place_first: bool = False
    prompts: Literal["short", "llava"] = "short"

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: object) -> object:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.size) < 24:
            raise ValueError(f"size {self.size}: a side needs at least 24 pixels")
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects {self.min_objects} > max_objects {self.max_objects}")
        if self.skip_shapes and self.objects == "letters":
            raise ValueError(f"skip_shapes {self.skip_shapes}: objects are letters")
        if self.skip_shapes >= self.shapes:
            raise ValueError(f"skip_shapes {self.skip_shapes} leaves none of {self.shapes} shapes")
        kinds = len(self.shape_names)
        if kinds * self.colours < self.max_objects:
            raise ValueError(
                f"{kinds} {self.objects} x {self.colours} colours cannot make {self.max_objects} "
                "objects that differ"
            )
        cells = self.max_objects + 2 * self.words + 2 * self.figures
        if cells > CELLS:
            raise ValueError(
                f"{self.max_objects} objects + 2 x {self.words} words + 2 x {self.figures} figures "
                f"need {cells} cells; there are {CELLS}"
            )
        if not 1 <= self.word_letters[0] <= self.word_letters[1] <= 8:
            raise ValueError(f"word_letters {self.word_letters}: least and most, within 1..8")
        if self.background == "dark" and self.colours == len(COLOURS):
            raise ValueError("black objects cannot be seen on dark backgrounds; use colours <= 9")
        return self

    @property
    def shape_names(self) -> tuple[str, ...]:
        """The shapes, or letters, that are drawn."""
        return self.known_shapes[self.skip_shapes :]

    @property
    def known_shapes(self) -> tuple[str, ...]:
        """Those, and the ones that are asked about but never drawn."""
        return SHAPES[: self.shapes] if self.objects == "shapes" else tuple(LETTERS[: self.letters])
