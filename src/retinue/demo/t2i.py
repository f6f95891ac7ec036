"""Text to image: the model writes a prompt, a pipeline elsewhere paints it.

The pipeline is an address that takes `{"prompt": ...}` as OpenAI's image API does, or a function
given as `module:name` that takes the prompt and returns a picture.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from retinue.core.errors import ConfigError, EnvError
from retinue.media.image import load_image

Painter = Callable[[str], Image.Image]
"""A prompt -> its picture."""

KEY = "RETINUE_T2I_KEY"
"""Environment variable with the key, if the server wants one."""
TIMEOUT = 300.0
LARGEST = 64 * 2**20
"""Bytes of an answer that are read."""


def painter(target: str) -> Painter:
    """The pipeline behind an address (http, https) or `module:function`.

    Raises ConfigError for anything else, and for a function that is not there.
    """
    if target.startswith(("http://", "https://")):
        return Endpoint(url=target)
    module, mark, name = target.partition(":")
    if not mark or not name or "/" in target:
        raise ConfigError(
            f"{target!r} is no pipeline",
            where="--t2i",
            rule="http://... of a server, or module:function",
        )
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{target!r} cannot be imported", where="--t2i", rule=str(error)
        ) from error
    if not callable(found):
        raise ConfigError(f"{target!r} cannot be called", where="--t2i", rule="prompt -> picture")

    def paint(prompt: str) -> Image.Image:
        return picture_of(found(prompt), where=target)

    return paint


def picture_of(made: Any, *, where: str) -> Image.Image:
    """What a pipeline returned: a picture, or as diffusers an object with `images`."""
    several = getattr(made, "images", None)
    first = several[0] if isinstance(several, list | tuple) and several else made
    if not isinstance(first, Image.Image):
        raise EnvError(
            f"returned a {type(made).__name__}", where=where, rule="a Pillow picture, or .images"
        )
    return first.convert("RGB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """url: the address itself, or a base that ends with /v1, to which OpenAI's path is added."""

    url: str
    timeout: float = TIMEOUT

    def __call__(self, prompt: str) -> Image.Image:
        """Ask for one picture. Raises EnvError for a server that gives none."""
        place = self.url.rstrip("/")
        place += "/images/generations" if place.endswith("/v1") else ""
        body = {"prompt": prompt, "n": 1, "response_format": "b64_json"}
        kind, data = post(place, body, timeout=self.timeout)
        if kind.startswith("image/"):
            return load_image(data, where=place)
        try:
            return load_image(picture_in(json.loads(data), timeout=self.timeout), where=place)
        except (ValueError, KeyError, IndexError, TypeError, binascii.Error) as error:
            raise EnvError(
                "no picture in the answer",
                where=place,
                rule='an image, {"data": [{"b64_json" or "url": ...}]} or {"images": [base64]}',
            ) from error


def picture_in(answer: Any, *, timeout: float) -> bytes:
    """The picture's file in a JSON answer. Raises ValueError, KeyError and the like for none."""
    if "images" in answer:
        return base64.b64decode(answer["images"][0].partition(",")[2] or answer["images"][0])
    first = answer["data"][0]
    if first.get("b64_json"):
        return base64.b64decode(first["b64_json"])
    if not str(first["url"]).startswith(("http://", "https://")):
        raise ValueError(first["url"])
    return fetched(urllib.request.Request(first["url"]), timeout=timeout)[1]


def post(url: str, body: dict[str, Any], *, timeout: float) -> tuple[str, bytes]:
    """(content type, content) of an answer. Raises EnvError naming what went wrong."""
    headers = {"Content-Type": "application/json"}
    if os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {os.environ[KEY]}"
    data = json.dumps(body).encode()
    return fetched(urllib.request.Request(url, data=data, headers=headers), timeout=timeout)


def fetched(request: urllib.request.Request, *, timeout: float) -> tuple[str, bytes]:
    """Send it. Raises EnvError."""
    place = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            data = answer.read(LARGEST + 1)
            kind = answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        said = error.read(500).decode("utf-8", "replace").strip()
        raise EnvError(f"answered {error.code}", where=place, rule=said or error.reason) from error
    except (OSError, ValueError) as error:
        raise EnvError("cannot be reached", where=place, rule=str(error)) from error
    if len(data) > LARGEST:
        raise EnvError(f"more than {LARGEST >> 20} MiB", where=place)
    return kind, data
