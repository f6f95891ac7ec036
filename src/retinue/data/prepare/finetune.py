"""Conversations and prompt-completion pairs -> rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retinue.data.prepare.regions import (
    CHAT_TRAINED,
    DISCARDED,
    UNREAD,
    Count,
    Defaults,
    Piece,
    Region,
    SkipError,
    pieces_of,
    place,
)
from retinue.data.prepare.rows import Row, Sizes, make_row
from retinue.data.prepare.words import Words

TAGS = ("<{}>", "</{}>")
MARK = re.compile(r"<(\d+)_region>")
LONG = "Length of token ids > max_sequence_len and truncation is not set, skipping this example..."
SHORT = "Length of token ids < min_sequence_len, skipping this example..."
MANY = "Sample contains more images than max_num_img. Skipping this."


class Finetuning:
    """Turns of one sample -> at most one row. `sep`: between prompt and completion."""

    def __init__(
        self,
        words: Words,
        *,
        sizes: Sizes,
        image_token: str,
        image_dir: Path | None,
        clean: Callable[[str], str],
        defaults: Defaults,
        end: str | None,
        sep: str,
        shortest: int,
        keep_image_id: bool,
        check_images: bool = True,
    ) -> None:
        self.words, self.sizes, self.image_token = words, sizes, image_token
        self.image_dir, self.clean, self.defaults = image_dir, clean, defaults
        self.end, self.sep, self.shortest = end or words.token("eos") or "", sep, shortest
        self.marked = end is not None
        self.slot = words.image_id if keep_image_id else sizes.pad
        self.check_images = check_images

    def rows(self, turns: Sequence[Mapping[str, Any]], count: Count) -> list[Row]:
        """One row. Raises SkipError with the reason, DataError for turns that are no turns."""
        parts = [
            (
                turn["type"],
                pieces_of(
                    turn,
                    clean=self.clean,
                    defaults=self.defaults,
                    tags=TAGS,
                    trained=turn["type"] in CHAT_TRAINED,
                    count=count,
                    empty=f"Missing {turn['type']} section in the data. Skipping this example ",
                ),
            )
            for turn in turns
        ]
        check_pictures([p for _, ps in parts for p in ps], self.image_dir, on=self.check_images)
        pairs = bool(turns) and turns[0]["type"] in ("prompt", "completion")
        text, regions = self.paired(parts) if pairs else self.chatted(parts)
        self.close(text, regions, chat=not pairs)
        ids, offsets = self.words.encode(text, special=pairs)
        place(regions, offsets)
        return [self.row(ids, regions)]

    def chatted(self, parts: Sequence[tuple[str, list[Piece]]]) -> tuple[str, list[Region]]:
        """Text of the chat template; where each region went is found by marks set before it."""
        flat = [piece for _, pieces in parts for piece in pieces]
        messages, number = [], 0
        for role, pieces in parts:
            content = ""
            for piece in pieces:
                inside = self.image_token if piece.key == "image" else piece.text
                content += f"<{number}_region>{inside}"
                number += 1
            messages.append({"role": role, "content": content})
        rendered = self.words.chat(messages)
        text, at, regions = "", 0, []
        for mark in MARK.finditer(rendered):
            text += rendered[at : mark.start()]
            at = mark.end()
            piece = flat[int(mark[1])]
            inside = self.image_token if piece.key == "image" else piece.text
            piece.region.start, piece.region.end = len(text), len(text) + len(inside)
            if not rendered.startswith(inside, at):  # a template that strips its contents
                left = inside.strip()
                piece.region.end = piece.region.start + len(left)
            regions.append(piece.region)
        return text + rendered[at:], regions

    def paired(self, parts: Sequence[tuple[str, list[Piece]]]) -> tuple[str, list[Region]]:
        """prompt, separator, completion, end of sequence."""
        text, regions = "", []
        for role, pieces in parts:
            for piece in pieces:
                inside = self.image_token if piece.key == "image" else piece.text
                piece.region.start, piece.region.end = len(text), len(text) + len(inside)
                if piece.key == "image" and role == "completion":
                    piece.region.weight = 0.0
                text += inside
                regions.append(piece.region)
            text += self.sep if role == "prompt" else ""
            text += (self.words.token("eos") or "") if role == "completion" else ""
        return text, regions

    def close(self, text: str, regions: Sequence[Region], *, chat: bool) -> None:
        """Each region takes the end mark that follows it before the next region."""
        for number, region in enumerate(regions):
            limit = regions[number + 1].start if number + 1 < len(regions) else len(text)
            at = text.find(self.end, region.end, limit) if self.end else -1
            if at >= 0 and region.image is None:
                region.end = at + len(self.end)
        if chat and text.count(self.end) <= 1:
            for region in regions:
                region.more = int(region.end < len(text) and region.image is None)

    def row(self, ids: Sequence[int], regions: Sequence[Region]) -> Row:
        """Image tokens become slots; weights and masks are painted region by region."""
        weights, attends = [0.0] * len(ids), [True] * len(ids)
        order = sorted(regions, key=lambda region: region.image is not None)
        for region in order:
            for t in range(region.first, region.last):
                weights[t], attends[t] = region.weight, region.attends
        paths = [region.image for region in regions if region.image is not None]
        out: list[int] = []
        out_weights: list[float] = []
        out_attends: list[bool] = []
        pictures: list[tuple[int, str]] = []
        for t, token in enumerate(ids):
            times = 1
            if token == self.words.image_id:
                if len(pictures) < len(paths):
                    pictures.append((len(out), str(paths[len(pictures)])))
                times, token = self.sizes.patches, self.slot if self.slot is not None else token
            out += [token] * times
            out_weights += [weights[t]] * times
            out_attends += [attends[t]] * times
        if len(pictures) > self.sizes.pictures:
            raise SkipError(MANY)
        if len(out) > self.sizes.length:
            raise SkipError(LONG, counts=DISCARDED)
        if len(out) < self.shortest:
            raise SkipError(SHORT, counts=DISCARDED)
        return make_row(out, out_weights, out_attends, pictures, sizes=self.sizes)


def check_pictures(pieces: Sequence[Piece], root: Path | None, *, on: bool) -> None:
    """Raise SkipError for a picture that is not there."""
    for piece in pieces if on else ():
        if piece.region.image is not None:
            path = (root or Path()) / piece.region.image
            if not path.exists():
                reason = f"Image with path - {path} does not exist. Hence skipping this."
                raise SkipError(reason, counts=UNREAD)
