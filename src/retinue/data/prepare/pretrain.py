"""Documents of words and pictures -> rows of max_seq_length, packed or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.data.prepare.finetune import MANY, SHORT, check_pictures
from retinue.data.prepare.regions import (
    DISCARDED,
    Count,
    Defaults,
    Region,
    SkipError,
    pieces_of,
    place,
)
from retinue.data.prepare.rows import Row, Sizes, make_row
from retinue.data.prepare.words import Words

TAGS = ("<|{}|>", "<|/{}|>")


class Open:
    """A row that is being filled: ids, weights, attention, pictures."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.weights: list[float] = []
        self.attends: list[bool] = []
        self.pictures: list[tuple[int, str]] = []

    def state(self) -> dict[str, Any]:
        """Plain data, so that a run can go on later."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Open:
        made = cls()
        vars(made).update(state)
        made.pictures = [(int(first), str(path)) for first, path in made.pictures]
        return made


class Pretraining:
    """Documents -> rows. With `pack`, what is left of one is continued by the next.

    exact: a picture at the very start of a document that continues a row gets the place that it
    would have in a row of its own, as the original writes it; its visual tokens then miss it.
    """

    def __init__(
        self,
        words: Words,
        *,
        sizes: Sizes,
        image_token: str,
        image_dir: Path | None,
        clean: Callable[[str], str],
        defaults: Defaults,
        shortest: int,
        pack: bool,
        eos: int,
        keep_image_id: bool,
        exact: bool = False,
        check_images: bool = True,
    ) -> None:
        self.exact = exact
        self.words, self.sizes, self.image_token = words, sizes, image_token
        self.image_dir, self.clean, self.defaults = image_dir, clean, defaults
        self.shortest, self.pack, self.eos = shortest, pack, eos
        self.slot = words.image_id if keep_image_id else sizes.pad
        self.check_images = check_images
        self.left = Open()

    def rows(self, turns: Sequence[Mapping[str, Any]], count: Count) -> list[Row]:
        """Rows that are complete. Raises SkipError if the document gives none at all."""
        pieces = [
            piece
            for turn in turns
            for piece in pieces_of(
                turn,
                clean=self.clean,
                defaults=self.defaults,
                tags=TAGS,
                trained=True,
                count=count,
                empty="skip",
            )
        ]
        check_pictures(pieces, self.image_dir, on=self.check_images)
        text, regions = "", []
        for piece in pieces:
            inside = piece.text
            if piece.key == "image":
                inside, piece.region.weight = self.image_token * self.sizes.patches, 0.0
            piece.region.start, piece.region.end = len(text), len(text) + len(inside)
            text += inside
            regions.append(piece.region)
        if not regions:
            raise SkipError(SHORT, counts=DISCARDED)
        if sum(region.image is not None for region in regions) > self.sizes.pictures:
            raise SkipError(MANY)
        ids, offsets = self.words.encode(text, special=True)
        place(regions, offsets)
        regions[0].first = 0
        chunks = self.cut(ids, regions)
        return self.finish(chunks)

    def cut(self, ids: Sequence[int], regions: Sequence[Region]) -> list[Open]:
        """Rows of at most T + 1 ids; words are cut anywhere, pictures never."""
        limit, now = self.sizes.length + 1, self.left if self.pack else Open()
        done: list[Open] = []
        for region in regions:
            stop = region.last
            if region.image is None:
                at = region.first
                while at < stop:
                    take = min(stop - at, limit - len(now.ids))
                    now.ids += ids[at : at + take]
                    now.weights += [region.weight] * take
                    now.attends += [region.attends] * take
                    at += take
                    if len(now.ids) == limit:
                        done.append(now)
                        now = Open()
                continue
            length = stop - region.first
            if length > limit - 1:
                raise DataError(
                    f"a picture of {length} tokens in rows of {limit - 1}",
                    fix="raise max_seq_length, or lower num_patches",
                )
            if len(now.ids) + length >= limit - 1:
                if now.ids:
                    done.append(now)
                now = Open()
            extra = length - self.sizes.patches
            first = extra if self.exact and region.first == 0 else len(now.ids) + extra
            now.pictures.append((first, str(region.image)))
            for t in range(region.first, stop):
                token = ids[t]
                now.ids.append(
                    self.slot if token == self.words.image_id and self.slot is not None else token
                )
            now.weights += [region.weight] * length
            now.attends += [region.attends] * length
        return [*done, now]

    def finish(self, chunks: list[Open]) -> list[Row]:
        """The end of sequence where it belongs; short rows are dropped."""
        *full, last = chunks
        if self.pack:
            self.left, ready = last, full
        else:
            ready = [*full, last] if last.ids else full
        if ready:
            self.end(ready[-1])
        rows = [self.row(one) for one in ready if len(one.ids) >= self.shortest]
        if not rows and not (self.pack and self.left.ids):
            raise SkipError(SHORT, counts=DISCARDED)
        return rows

    def end(self, one: Open) -> None:
        """Close a row by the end of sequence; a full one loses its last token to it."""
        if len(one.ids) > self.sizes.length:
            one.ids[-1] = self.eos
            return
        one.ids.append(self.eos)
        one.weights.append(1.0)
        one.attends.append(True)

    def row(self, one: Open) -> Row:
        return make_row(one.ids, one.weights, one.attends, one.pictures, sizes=self.sizes)

    def rest(self) -> Row | None:
        """What is left at the very end, None where it is too short."""
        return self.row(self.left) if len(self.left.ids) >= self.shortest else None
