"""A model behind an OpenAI-compatible address in the place of one of ours."""

from __future__ import annotations

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from retinue.core.errors import DataError, EnvError, RequestError
from retinue.eval.predictions import Saved
from retinue.types import Media, Sample, Text

KEY = "OPENAI_API_KEY"
"""Environment variable with the key, if the server wants one."""
TRIES, PAUSE, TIMEOUT = 5, 1.0, 300.0
BUSY = {408, 409, 429, 500, 502, 503, 504}
MAGIC = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}
Refused = Callable[[int, Sample, Exception], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """url: up to and with /v1. workers: requests under way at one time."""

    url: str
    model: str
    max_new_tokens: int = 64
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    workers: int = 8

    def __call__(self, samples: Iterable[Sample], refused: Refused | None) -> Iterator[Saved]:
        """Answers in order. refused: told of samples that cannot be asked; without it they raise.

        Raises EnvError where the server cannot be reached or goes on failing.
        """
        waiting: deque[tuple[int, Sample, Future[tuple[str, str]]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for number, sample in enumerate(samples):
                    waiting.append((number, sample, pool.submit(self.ask, sample)))
                    if len(waiting) > 2 * self.workers:
                        yield from settled(*waiting.popleft(), refused)
                while waiting:
                    yield from settled(*waiting.popleft(), refused)
            finally:
                for _, _, future in waiting:
                    future.cancel()

    def ask(self, sample: Sample) -> tuple[str, str]:
        """(text, finish) of one conversation."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": message.role, "content": [part_of(part) for part in message.parts]}
                for message in sample.messages
            ],
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }
        if self.stop:
            body["stop"] = list(self.stop)
        found = post(f"{self.url.rstrip('/')}/chat/completions", body)
        try:
            choice = found["choices"][0]
            return choice["message"]["content"] or "", choice.get("finish_reason") or "stop"
        except (KeyError, IndexError, TypeError):
            raise EnvError(
                "the server's reply has no answer", where=self.url, rule=f"{found!r:.200}"
            ) from None


def settled(
    number: int, sample: Sample, future: Future[tuple[str, str]], refused: Refused | None
) -> Iterator[Saved]:
    """The answer of a request, or none after telling `refused`."""
    try:
        text, finish = future.result()
    except (DataError, RequestError) as error:
        if refused is None:
            raise
        refused(number, sample, error)
        return
    yield Saved(text=text, number=number, finish=finish)


def part_of(part: Text | Media) -> dict[str, Any]:
    """A part of a message as the protocol has it; pictures travel inside."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": data_uri(part)}}


def data_uri(media: Media) -> str:
    """A picture as it stands on the disk, in base64. Raises DataError for a video or no file."""
    source: str | bytes | Image.Image | tuple[Any, ...] = media.source
    if media.kind == "video" or isinstance(source, tuple):
        raise DataError("a video cannot be sent", where=f"{source!r:.200}", rule="pictures only")
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return source
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        source.save(buffer, "PNG")
        source = buffer.getvalue()
    if isinstance(source, str):
        place = Path(source)
        try:
            source = place.read_bytes()
        except OSError as error:
            raise DataError("no picture there", where=str(place), rule=str(error)) from None
    kind = MAGIC.get(source[:2], "png")
    return f"data:image/{kind};base64,{base64.b64encode(source).decode()}"


def post(url: str, body: Any) -> Any:
    """Send JSON and read JSON; a busy server is asked again after a pause that doubles.

    Raises RequestError where the server refuses this request, EnvError where it cannot be used.
    """
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    problem = ""
    for turn in range(TRIES):
        if turn:
            time.sleep(PAUSE * 2 ** (turn - 1))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            problem = f"{error.code}: {error.read(500).decode(errors='replace')}"
            error.close()
            if error.code in (401, 403, 404):
                break
            if error.code not in BUSY:
                raise RequestError("the server refuses", where=url, rule=problem) from None
        except (OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
    raise EnvError(
        "the server cannot be used",
        where=url,
        rule=problem,
        fix=f"check the address, the model's name and {KEY}",
    )
