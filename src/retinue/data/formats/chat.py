"""Chat rows in the style of OpenAI and Hugging Face: `messages` of role and content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, get_args

from retinue.core.errors import DataError
from retinue.data.formats.base import (
    PLACEHOLDER,
    PlaceholderError,
    Row,
    RowFormat,
    interleave,
    split_placeholders,
)
from retinue.text.parts import on_lines
from retinue.types import Media, Message, Part, Role, Sample

ROLES: dict[str, Role] = {role: role for role in get_args(Role)}
KNOWN = {"id", "messages", "images", "visual_tokens"}
PART_RULE = 'a part is {"type": "text", "text"}, {"type": "image", "image"|"path"|"url"}, {"type": "video", "video"|"path"|"url"} or {"type": "image_url", "image_url": {"url"}}'  # noqa: E501


class Chat(RowFormat):
    """JSONL (or a list) of `messages`: content a string, or text, image, image_url and video parts.

    Also accepted: a top-level `images` list, whose members stand where `<image>` placeholders or
    bare {"type": "image"} parts do; `visual_tokens`, a number per view, in a row or a part.
    Source: the chat formats of the OpenAI API and transformers.
    """

    keys: ClassVar[frozenset[str]] = frozenset({"messages"})

    def sample(self, row: Row) -> Sample:
        return sample_from_row(row, empty_answers=self.empty_answers)


def sample_from_row(row: Row, *, empty_answers: bool = False) -> Sample:
    """A Sample from one chat record. Raises DataError naming the record, the field and the rule."""
    turns = row.expect_list(row.data.get("messages"), "messages", of="{role, content}")
    listed = row.data.get("images")
    named = [
        row.media(source, f"images[{i}]")
        for i, source in enumerate(row.expect_list(listed, "images", of="images") if listed else [])
    ]
    waiting = iter(named)
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        field = f"messages[{i}]"
        role = _role(row, turn, field)
        content = turn.get("content")
        parts = list(_parts(row, content, f"{field}.content", waiting))
        if isinstance(content, list):
            parts = list(on_lines(parts))
        message = row.message(role, parts, f"{field}.content", empty=empty_answers)
        train = turn.get("train")
        if train is not None and not isinstance(train, bool):
            raise row.error(
                f"{field}.train",
                f"{train!r:.40}",
                rule="train is true or false",
                fix="remove it: assistant turns are trained",
            )
        messages.append(Message(role=message.role, parts=message.parts, train=train))
    left = len(list(waiting))
    if left:
        raise _count(row, len(named) - left, len(named))
    meta = {key: value for key, value in row.data.items() if key not in KNOWN}
    return Sample(id=row.id, messages=tuple(messages), meta=meta)


def _role(row: Row, turn: Any, field: str) -> Role:
    if not isinstance(turn, dict) or "role" not in turn:
        raise row.error(
            field,
            f"{turn!r:.60}",
            rule="a message is {'role': ..., 'content': ...}",
            fix="add the missing key",
        )
    role = turn["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise row.error(
            f"{field}.role",
            f"unknown role {role!r:.40}",
            rule=f"roles are {', '.join(ROLES)}",
            fix="rename the role",
        )
    return ROLES[role]


def _parts(row: Row, content: Any, field: str, waiting: Iterator[Media]) -> Iterator[Part]:
    """The parts of a message; bare images and placeholders take the next of `waiting`."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise row.error(
            field,
            "missing" if content is None else f"{content!r:.60}",
            rule="content is a string or a list of parts",
            fix="write the text as a string",
        )
    for k, part in enumerate(content):
        place = f"{field}[{k}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces = split_placeholders(part["text"])
            yield from interleave(pieces, [_next(row, waiting) for _ in pieces[1:]])
        elif kind == "image" and not part.keys() & {"image", "path", "url"}:
            medium = _next(row, waiting)
            own = _budget(part)
            yield medium if own is None else replace(medium, budget=row.budget(own, place))
        elif kind == "image":
            key = next(key for key in ("image", "path", "url") if key in part)
            yield row.media(part[key], f"{place}.{key}", budget=_budget(part))
        elif kind == "video":
            key = next((key for key in ("video", "path", "url") if key in part), "video")
            yield row.media(part.get(key), f"{place}.{key}", budget=_budget(part), kind=kind)
        elif kind == "image_url":
            yield row.media(part.get("image_url"), f"{place}.image_url", budget=_budget(part))
        else:
            raise row.error(place, f"{part!r:.60}", rule=PART_RULE, fix="mend the part")


def _budget(part: dict[str, Any]) -> Any:
    """Visual tokens per view of a part; `budget` is an older name of the field."""
    found = part.get("visual_tokens")
    return part.get("budget") if found is None else found


def _next(row: Row, waiting: Iterator[Media]) -> Media:
    medium = next(waiting, None)
    if medium is None:
        known = row.data.get("images") or []
        raise _count(row, f"more than {len(known)}", len(known))
    return medium


def _count(row: Row, places: int | str, images: int) -> DataError:
    return row.error(
        "images",
        f"{places} places ({PLACEHOLDER} or bare image parts) for {images} images",
        rule="every place takes one image of 'images', in order",
        fix=f"add or remove a place, or mend 'images'; to write {PLACEHOLDER} as text, rephrase it",
        kind=PlaceholderError,
    )
