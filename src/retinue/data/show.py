"""Samples as the model will read them: one self-contained HTML page.

Pictures, the rendered prompt token by token, the label mask in colour, and the counts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import jinja2

from retinue.core.errors import DataError
from retinue.media.image import load_image
from retinue.types import IGNORE, Example, Media, Sample

THUMBNAIL = 320


class Decodes(Protocol):
    """The part of a tokenizer that the page needs."""

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...
    def token_of(self, id: int) -> str: ...


class Shows(Protocol):
    """The part of the Processor that the page needs."""

    @property
    def tokenizer(self) -> Decodes: ...

    def unfold(self, sample: Sample, *, pixels: bool = True) -> Sample: ...

    def example(self, sample: Sample, *, train: bool = False, pixels: bool = True) -> Example: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A token, or a run of placeholders (`image`: number of the picture, from 1)."""

    text: str
    id: int
    position: int
    trained: bool = False
    image: int | None = None
    length: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    name: str
    uri: str | None
    size: str
    views: str
    tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    id: str
    turns: list[tuple[str, list[str | int]]]
    pictures: list[_Picture]
    pieces: list[_Piece] = field(default_factory=list)
    tokens: int = 0
    targets: int = 0
    visual: int = 0
    error: str | None = None


def show_html(
    samples: Iterable[Sample | DataError],
    processor: Shows,
    *,
    out: str | Path | None = None,
    title: str = "Samples",
) -> str:
    """The page as a string, also written to `out` if given: thumbnails inside, no script, no link.

    A sample that cannot be prepared, or a DataError in its place, becomes a card with the error.
    """
    cards = [_card(sample, processor) for sample in samples]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = (files("retinue.data") / "show.html").read_text("utf-8")
    page = environment.from_string(template).render(title=title, cards=cards)
    if out is not None:
        Path(out).write_text(page, encoding="utf-8")
    return page


def _card(sample: Sample | DataError, processor: Shows) -> _Card:
    if isinstance(sample, DataError):
        return _Card(id=sample.where or "?", turns=[], pictures=[], error=str(sample))
    try:
        sample = processor.unfold(sample)
    except DataError as error:
        return _Card(id=sample.id, turns=_turns(sample), pictures=[], error=str(error))
    turns = _turns(sample)
    try:
        example = processor.example(sample, train=True, pixels=False)
    except DataError as error:
        pictures = [_picture(medium) for medium in sample.media]
        return _Card(id=sample.id, turns=turns, pictures=pictures, error=str(error))
    return _Card(
        id=sample.id,
        turns=turns,
        pictures=[_picture(m, example, i) for i, m in enumerate(sample.media)],
        pieces=list(_pieces(example, processor.tokenizer)),
        tokens=len(example.tokens),
        targets=example.num_supervised,
        visual=sum(span.length for span in example.spans),
    )


def _turns(sample: Sample) -> list[tuple[str, list[str | int]]]:
    """Role and parts of every message; a picture is its number, from 1."""
    numbers = count(1)
    return [
        (m.role, [next(numbers) if isinstance(p, Media) else p.text for p in m.parts])
        for m in sample.messages
    ]


def _pieces(example: Example, tokenizer: Decodes) -> Iterator[_Piece]:
    """Tokens in order, each run of placeholders as one piece."""
    runs = {span.start: span for span in example.spans if span.length}
    ends = {span.start + span.length for span in example.spans}
    at = 0
    while at < len(example.tokens):
        if at in runs:
            span = runs[at]
            yield _Piece(
                text="",
                id=example.tokens[at],
                position=at,
                image=span.item + 1,
                length=span.length,
            )
            at += span.length
            continue
        before = example.tokens[at - 1 : at] if at and at not in ends else []
        yield _Piece(
            text=_text(example.tokens[at], before, tokenizer),
            id=example.tokens[at],
            position=at,
            trained=at > 0 and example.labels[at] != IGNORE,
        )
        at += 1


def _text(token: int, before: Sequence[int], tokenizer: Decodes) -> str:
    """What a token adds to the text; pieces of a character are shown as the vocabulary has them."""
    start = tokenizer.decode(before, skip_special=False)
    both = tokenizer.decode([*before, token], skip_special=False)
    text = both.removeprefix(start) if both.startswith(start) else ""
    return text if text and "\ufffd" not in text else tokenizer.token_of(token)


def _picture(medium: Media, example: Example | None = None, number: int = 0) -> _Picture:
    item = example.items[number] if example and number < len(example.items) else None
    source: Any = medium.source
    name = medium.name or (source if isinstance(source, str) else "picture")
    if name.startswith("data:"):
        name = f"{name[:24]}..."
    try:
        image = load_image(source)
    except DataError as error:
        return _Picture(name=name, uri=None, size=error.what, views="", tokens=None)
    size = f"{image.width} × {image.height}"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=85)
    views = ""
    if item is not None and item.grid.num_views > 1:
        views = f"{item.grid.rows} × {item.grid.cols} tiles"
        views += " + overview" if item.grid.overview else ""
    return _Picture(
        name=name,
        uri="data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode(),
        size=size,
        views=views,
        tokens=None if item is None else item.num_tokens,
    )
