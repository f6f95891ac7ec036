"""Messages of the API to a Sample: text and pictures under limits.

Pictures are data URIs. Files below given folders and files of given hosts are taken where the
server's operator names such folders and hosts.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from retinue.core.errors import MediaError
from retinue.core.spec import Spec
from retinue.media.image import image_size
from retinue.media.source import Limits, open_source
from retinue.serve.failures import ApiError, refuse
from retinue.serve.fetch import Fetcher
from retinue.serve.schema import ChatMessage
from retinue.text.parts import on_lines
from retinue.types import Media, Message, Part, Role, Sample, Text

PART = 'a part is {"type": "text", "text"} or {"type": "image_url", "image_url": {"url"}}'
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
WEB = re.compile(r"https?:", re.IGNORECASE)


class PictureLimits(Spec):
    """Of pictures in requests: how many, how large their files, how many pixels each has.

    roots: folders whose files a `file:` URL may name; hosts: where pictures may be fetched from
    (`retinue.serve.fetch.Fetcher`), fetch_s: seconds that may take.
    """

    count: int = Field(default=16, ge=0)
    bytes: int = Field(default=20 * 2**20, gt=0)
    pixels: int = Field(default=40_000_000, gt=0)
    roots: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    fetch_s: float = Field(default=10.0, gt=0)

    def fetcher(self) -> Fetcher | None:
        """What fetches pictures; None where no host is named."""
        if not self.hosts:
            return None
        return Fetcher(self.hosts, max_bytes=self.bytes, seconds=self.fetch_s)


def sample_of(
    id: str,
    messages: Sequence[ChatMessage],
    *,
    limits: PictureLimits,
    fetcher: Fetcher | None = None,
) -> Sample:
    """The conversation. Raises ApiError that names the field, 413 where a picture is too large."""
    shown = 0
    turns: list[Message] = []
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        if message.role in ("tool", "function"):
            raise refuse("tool messages are not supported by this server", f"{field}.role")
        role: Role = "system" if message.role == "developer" else message.role  # type: ignore[assignment]
        content = message.content
        given = content if isinstance(content, list) else []
        shown += sum(part.get("type") == "image_url" for part in given)
        if shown > limits.count:
            raise refuse(f"more than {limits.count} pictures", field, "too_many_images")
        parts = list(_parts(content, f"{field}.content", limits, fetcher))
        if isinstance(message.content, list):
            parts = list(on_lines(parts))
        turns.append(Message(role=role, parts=tuple(parts)))
    return Sample(id=id, messages=tuple(turns))


def _parts(
    content: Any, field: str, limits: PictureLimits, fetcher: Fetcher | None
) -> Iterator[Part]:
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
            yield _picture(part, place, limits, fetcher)
        else:
            raise refuse(PART, place)


def _picture(
    part: dict[str, Any], place: str, limits: PictureLimits, fetcher: Fetcher | None
) -> Media:
    named = part.get("image_url")
    url = named.get("url") if isinstance(named, dict) else named
    budget = part.get("visual_tokens")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int)):
        raise refuse("visual_tokens is a number", f"{place}.visual_tokens")
    if budget is not None and budget < 1:
        raise refuse("visual_tokens is at least 1", f"{place}.visual_tokens")
    if not isinstance(url, str):
        raise refuse(PART, f"{place}.image_url")
    found = contents(url, f"{place}.image_url.url", limits, fetcher)
    return Media(source=found, budget=budget)


def contents(url: str, place: str, limits: PictureLimits, fetcher: Fetcher | None = None) -> bytes:
    """The file that a URL stands for, once its header says that it is a picture of a fit size."""
    if len(url) > 3 * limits.bytes:
        raise ApiError(413, f"a picture has at most {limits.bytes} bytes", param=place)
    own = Limits(max_bytes=limits.bytes, max_pixels=limits.pixels, files=False, urls=False)
    try:
        data = _read(url, place, limits, fetcher)
        if len(data) > limits.bytes:
            raise ApiError(413, f"a picture has at most {limits.bytes} bytes", param=place)
        height, width = image_size(data, limits=own)
    except MediaError as error:
        status = 413 if "at most" in (error.rule or "") else 400
        raise ApiError(status, str(error), param=place, code="invalid_image") from None
    assert height * width <= limits.pixels
    return data


def _read(url: str, place: str, limits: PictureLimits, fetcher: Fetcher | None) -> bytes:
    """The bytes behind a URL of a kind that this server takes."""
    if url.startswith("data:"):
        with open_source(url, limits=Limits(max_bytes=2**40, files=False, urls=False)) as file:
            return file.read()
    if fetcher is not None and WEB.match(url):
        return fetcher.get(url)
    if limits.roots and url.startswith("file:"):
        path = below(url, limits.roots)
        if path is not None:
            with open_source(path, limits=Limits(max_bytes=limits.bytes)) as file:
                return file.read()
        raise refuse("no file of that name is offered by this server", place, "invalid_image")
    what = "is not fetched by this server" if REMOTE.match(url) else "is no data URI"
    raise refuse(f"the picture {what}: send data:image/...;base64,...", place, "invalid_image")


def below(url: str, roots: Sequence[Path]) -> Path | None:
    """The file of a `file:` URL if it is one below these folders, links followed; else None."""
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        return None
    try:
        path = Path(urllib.parse.unquote(parts.path)).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    inside = any(path.is_relative_to(root.resolve()) for root in roots)
    return path if inside and path.is_file() else None
