"""Messages of the API to a Sample: text and pictures under limits; nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from retinue.core.errors import MediaError
from retinue.core.spec import Spec
from retinue.media.image import image_size
from retinue.media.source import Limits, open_source
from retinue.serve.failures import ApiError, refuse
from retinue.serve.schema import ChatMessage
from retinue.text.parts import on_lines
from retinue.types import Media, Message, Part, Role, Sample, Text

PART = 'a part is {"type": "text", "text"} or {"type": "image_url", "image_url": {"url"}}'
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class PictureLimits(Spec):
    """Of pictures in requests: how many, how large their files, how many pixels each has."""

    count: int = Field(default=16, ge=0)
    bytes: int = Field(default=20 * 2**20, gt=0)
    pixels: int = Field(default=40_000_000, gt=0)


def sample_of(id: str, messages: Sequence[ChatMessage], *, limits: PictureLimits) -> Sample:
    """The conversation. Raises ApiError that names the field, 413 where a picture is too large."""
    shown = 0
    turns: list[Message] = []
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if message.role in ("tool", "function"):
            raise refuse("tool messages are not supported by this server", f"{field}.role")
        role: Role = "system" if message.role == "developer" else message.role  # type: ignore[assignment]
        parts = list(_parts(message.content, f"{field}.content", limits))
        shown += sum(isinstance(part, Media) for part in parts)
        if shown > limits.count:
            raise refuse(f"more than {limits.count} pictures", field, "too_many_images")
        if isinstance(message.content, list):
            parts = list(on_lines(parts))
        turns.append(Message(role=role, parts=tuple(parts)))
    return Sample(id=id, messages=tuple(turns))


def _parts(content: Any, field: str, limits: PictureLimits) -> Iterator[Part]:
    if content is None:
        raise refuse("a message without content", field)
    if isinstance(content, str):
        yield Text(text=content)
        return
    for number, part in enumerate(content):
        place = f"{field}[{number}]"
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            yield Text(text=part["text"])
        elif kind == "image_url":
            yield _picture(part, place, limits)
        else:
            raise refuse(PART, place)


def _picture(part: dict[str, Any], place: str, limits: PictureLimits) -> Media:
    named = part.get("image_url")
    url = named.get("url") if isinstance(named, dict) else named
    budget = part.get("visual_tokens")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
        raise refuse("visual_tokens is a number", f"{place}.visual_tokens")
    if budget is not None and budget < 1:
        raise refuse("visual_tokens is at least 1", f"{place}.visual_tokens")
    if not isinstance(url, str):
        raise refuse(PART, f"{place}.image_url")
    return Media(source=contents(url, f"{place}.image_url.url", limits), budget=budget)


def contents(url: str, place: str, limits: PictureLimits) -> bytes:
    """The file that a data URI holds, once its header says that it is a picture of a fit size."""
    if not url.startswith("data:"):
        what = "is not fetched by this server" if REMOTE.match(url) else "is no data URI"
        raise refuse(f"the picture {what}: send data:image/...;base64,...", place, "invalid_image")
    own = Limits(max_bytes=limits.bytes, max_pixels=limits.pixels, files=False, urls=False)
    if len(url) > 3 * limits.bytes:
        raise ApiError(413, f"a picture has at most {limits.bytes} bytes", param=place)
    try:
        with open_source(url, limits=own.model_copy(update={"max_bytes": 2**40})) as file:
            data = file.read()
        if len(data) > limits.bytes:
            raise ApiError(413, f"a picture has at most {limits.bytes} bytes", param=place)
        height, width = image_size(data, limits=own)
    except MediaError as error:
        status = 413 if "at most" in (error.rule or "") else 400
        raise ApiError(status, str(error), param=place, code="invalid_image") from None
    assert height * width <= limits.pixels
    return data
