"""LLaVA's training JSON: `image` beside `conversations` with `<image>` placeholders."""

from __future__ import annotations

from typing import Any, ClassVar

from retinue.data.formats.base import (
    PLACEHOLDER,
    VIDEO,
    Kind,
    PlaceholderError,
    Row,
    RowFormat,
    interleave,
    split_placeholders,
)
from retinue.types import Media, Message, Role, Sample

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
KNOWN = {"id", "image", "images", "video", "conversations", "visual_tokens"}


class Llava(RowFormat):
    """LLaVA's JSON list (or JSONL): `image` (path or list) and `conversations` of human and gpt.

    Each `<image>` becomes a medium at its place; moving it to the front of its message, as LLaVA
    does, is the template's business. A record with `video` (a path, a list of them, or a list of
    lists of frames) instead of `image` marks its places with `<video>` or `<image>`.
    Source: the data documentation of haotian-liu/LLaVA.
    """

    keys: ClassVar[frozenset[str]] = frozenset({"conversations"})

    def sample(self, row: Row) -> Sample:
        turns = row.expect_list(row.data.get("conversations"), "conversations", of="{from, value}")
        media = self._media(row)
        texts = [self._text(row, turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
        kind: Kind = "video" if "video" in row.data else "image"
        mark = PLACEHOLDER
        if kind == "video" and any(VIDEO in text for _, text in texts):
            mark = VIDEO
        wanted = sum(text.count(mark) for _, text in texts)
        if wanted != len(media):
            raise row.error(
                "conversations",
                f"{wanted} {mark} for {len(media)} {kind}{'s' * (len(media) != 1)}",
                rule=f"one {mark} per {kind}",
                fix=f"add or remove {mark}, or mend {kind!r}",
                kind=PlaceholderError,
            )
        messages: list[Message] = []
        for i, (role, text) in enumerate(texts):
            pieces = split_placeholders(text, mark=mark)
            taken, media = media[: len(pieces) - 1], media[len(pieces) - 1 :]
            parts = interleave(pieces, taken)
            field = f"conversations[{i}].value"
            messages.append(row.message(role, parts, field, empty=self.empty_answers))
        meta = {key: value for key, value in row.data.items() if key not in KNOWN}
        return Sample(id=row.id, messages=tuple(messages), meta=meta)

    def _media(self, row: Row) -> list[Media]:
        if "video" in row.data:
            return self._videos(row)
        field = "image" if "image" in row.data else "images"
        found = row.data.get(field)
        if found is None:
            return []
        if not isinstance(found, list):
            return [row.media(found, field)]
        return [row.media(source, f"{field}[{i}]") for i, source in enumerate(found)]

    def _videos(self, row: Row) -> list[Media]:
        found = row.data["video"]
        if "image" in row.data or "images" in row.data:
            raise row.error(
                "video",
                "a record with both images and videos",
                rule="LLaVA's JSON has one of them",
                fix="write the record as a chat row (format: chat)",
            )
        if not isinstance(found, list):
            return [row.media(found, "video", kind="video")]
        return [row.media(one, f"video[{i}]", kind="video") for i, one in enumerate(found)]

    def _text(self, row: Row, turn: Any, field: str) -> tuple[Role, str]:
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
            raise row.error(
                field,
                f"{turn!r:.60}",
                rule="a turn is {'from': ..., 'value': ...}",
                fix="add the missing key",
            )
        if not isinstance(turn["from"], str) or turn["from"] not in ROLES:
            raise row.error(
                f"{field}.from",
                f"unknown role {turn['from']!r:.40}",
                rule="roles are human, gpt and system",
                fix="rename the role",
            )
        if not isinstance(turn["value"], str):
            raise row.error(
                f"{field}.value",
                f"{turn['value']!r:.60}",
                rule="a turn's value is a string",
                fix="write the text as one string",
            )
        return ROLES[turn["from"]], turn["value"]
