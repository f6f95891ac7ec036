"""Turns -> one text with named ranges: which characters belong to which region.

A region carries the weight of its loss, whether later tokens may attend to it, and for a picture
its path. Ranges of characters become ranges of tokens by the tokenizer's offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinue.core.errors import DataError

CHAT_TRAINED = ("assistant", "completion")


class SkipError(Exception):
    """A sample to be left out. counts: statistics that it adds to; measured: so do its texts."""

    def __init__(self, reason: str, *, counts: tuple[str, ...] = (), measured: bool = True) -> None:
        super().__init__(reason)
        self.counts, self.measured = counts, measured


UNREAD = ("raw_docs_skipped",)
"""Counts of a sample that is not even tokenized."""
DISCARDED = ("processed_files", "discarded_files")
"""Counts of one that is tokenized and then left out."""


@dataclass(slots=True, kw_only=True)
class Region:
    """A run of characters start..end; later `first..last` tokens."""

    start: int = 0
    end: int = 0
    weight: float = 0.0
    attends: bool = True
    image: str | None = None
    more: int = 0
    first: int = 0
    last: int = 0


@dataclass(slots=True, kw_only=True)
class Count:
    """Characters and bytes of a sample's text regions, before and after normalization."""

    raw_chars: int = 0
    raw_bytes: int = 0
    chars: int = 0
    bytes: int = 0

    def add(self, raw: str, clean: str) -> None:
        self.raw_chars += len(raw)
        self.raw_bytes += len(raw.encode())
        self.chars += len(clean)
        self.bytes += len(clean.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Values by region key (`text`, `image`) where a turn gives none; a weight of 0 is no value."""

    weight: Mapping[str, float] = field(default_factory=dict)
    drop: Mapping[str, bool] = field(default_factory=dict)
    attention: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Piece:
    """A region before it has a place: its text or picture, and what a turn says of it."""

    key: str
    text: str
    region: Region


def pieces_of(
    turn: Mapping[str, Any],
    *,
    clean: Callable[[str], str],
    defaults: Defaults,
    tags: tuple[str, str],
    trained: bool,
    count: Count,
    empty: str,
) -> list[Piece]:
    """The regions of a turn that are not dropped.

    empty: what an empty value does, "skip" the region or, with another text, the whole sample.
    Raises DataError for masks that do not fit the content, SkipError as told.
    """
    content = turn["content"]
    lists = {}
    for name in ("loss_weight", "drop_mask", "attention_mask"):
        given = turn.get(f"semantic_{name}")
        if given is not None and len(given) != len(content):
            raise DataError(
                f"semantic_{name} has {len(given)} entries for {len(content)} regions",
                rule="one entry for each region of a turn",
            )
        lists[name] = given
    found = []
    for number, entry in enumerate(content):
        tagged = entry.get("include_tags", False)
        key, value = next((k, v) for k, v in entry.items() if k != "include_tags")
        if value is None or value == "":
            if empty == "skip":
                continue
            raise SkipError(empty, counts=UNREAD, measured=False)
        text = str(value)
        if key != "image":
            text = clean(text)
            count.add(str(value), text)
        said = lists["drop_mask"]
        if said[number] if said is not None else defaults.drop.get(key, False):
            continue
        weight = float(trained)
        if lists["loss_weight"] is not None:
            weight = lists["loss_weight"][number]
        elif defaults.weight.get(key):
            weight = defaults.weight[key]
        said = lists["attention_mask"]
        attends = bool(said[number] if said is not None else defaults.attention.get(key, True))
        region = Region(weight=weight, attends=attends, image=value if key == "image" else None)
        if key != "image" and tagged:
            text = f"{tags[0].format(key)}{text}{tags[1].format(key)}"
        found.append(Piece(key=key, text=text, region=region))
    return found


def place(regions: Sequence[Region], offsets: Sequence[tuple[int, int]]) -> None:
    """Give every region its tokens, left to right; one that overlaps two belongs to the first."""
    at = 0
    for region in regions:
        while at < len(offsets) and offsets[at][1] <= region.start:
            at += 1
        region.first = at
        while at < len(offsets) and offsets[at][0] < region.end:
            at += 1
            if offsets[at - 1][1] >= region.end:  # later bytes of the same character stay outside
                break
        at = min(at + region.more, len(offsets))
        region.last = at
