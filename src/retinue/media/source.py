"""Where a picture comes from: a path, an http(s) URL, a data URI, bytes; always under limits."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import BinaryIO

from PIL.Image import Image as PILImage
from pydantic import Field

from retinue.core.errors import MediaError
from retinue.core.spec import Spec

Source = str | bytes | Path | PILImage

PILLOW_BOMB = 178_956_970
"""Pixels beyond which Pillow refuses to open a picture at all (twice its warning threshold)."""


class Limits(Spec):
    """What a picture may cost before it is refused.

    max_bytes: of the encoded file; max_pixels: width x height, read from the header before any
    decoding; timeout_s: for each network operation; files, urls: whether the source may name one
    (a server that takes requests from strangers turns `files` off).
    """

    max_bytes: int = Field(default=64 * 2**20, gt=0)
    max_pixels: int = Field(default=PILLOW_BOMB // 2, gt=0, le=PILLOW_BOMB)
    timeout_s: float = Field(default=20.0, gt=0)
    files: bool = True
    urls: bool = True


DEFAULT_LIMITS = Limits()


def label(source: Source, *, where: str | None = None) -> str:
    """How an error names a source, the sample it belongs to first."""
    if isinstance(source, bytes):
        name = f"image of {len(source)} bytes"
    elif isinstance(source, PILImage):
        name = f"{source.mode} image in memory"
    else:
        text = str(source)
        name = "data URI" if text.startswith("data:") else text
    return f"{where}: {name}" if where else name


def open_source(
    source: str | bytes | Path,
    *,
    root: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    where: str | None = None,
) -> BinaryIO:
    """An open binary stream of the encoded picture; the caller closes it.

    root: folder that relative paths start from. Raises MediaError if the source is missing,
    unreadable, of a forbidden kind, or larger than `limits.max_bytes`.
    """
    name = label(source, where=where)
    if isinstance(source, bytes):
        return _bounded(source, name=name, limits=limits)
    if isinstance(source, str) and source.startswith("data:"):
        return _bounded(_data_uri(source, name=name), name=name, limits=limits)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if not limits.urls:
            raise MediaError("URLs are not accepted here", where=name, fix="send the data itself")
        return _bounded(_fetch(source, name=name, limits=limits), name=name, limits=limits)
    if not limits.files:
        raise MediaError("local files are not accepted here", where=name, fix="send a data URI")
    return _open_file(root / source if root else Path(source), name=name, limits=limits)


def _bounded(data: bytes, *, name: str, limits: Limits) -> BinaryIO:
    _check_bytes(len(data), name=name, limits=limits)
    return io.BytesIO(data)


def _check_bytes(size: int, *, name: str, limits: Limits) -> None:
    if size == 0:
        raise MediaError("no data: zero bytes", where=name, fix="replace it or drop the sample")
    if size > limits.max_bytes:
        raise MediaError(
            f"{size} bytes or more",
            where=name,
            rule=f"at most {limits.max_bytes} bytes",
            fix="compress the picture or raise max_bytes of the image limits",
        )


def _open_file(path: Path, *, name: str, limits: Limits) -> BinaryIO:
    try:
        if path.exists() and not path.is_file():
            raise MediaError("not a regular file", where=name, fix="name an image file")
        file = path.open("rb")
    except FileNotFoundError:
        alone = name == str(path)  # somebody named it by hand
        raise MediaError(
            "no such file" if name.endswith(str(path)) else f"no such file: {path}",
            where=name,
            fix="check the path" + ("" if alone else " and the image root of the data set"),
        ) from None
    except (OSError, ValueError) as error:
        raise MediaError("cannot be opened", where=name, rule=str(error)) from error
    try:
        _check_bytes(path.stat().st_size, name=name, limits=limits)
    except BaseException:
        file.close()
        raise
    return file


def _data_uri(source: str, *, name: str) -> bytes:
    head, comma, body = source.partition(",")
    rule = "data:[type][;base64],<data>"
    if not comma:
        raise MediaError("a data URI without a comma", where=name, rule=rule)
    if not head.endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(
            f"invalid base64: {error}", where=name, rule=rule, fix="encode the file again"
        ) from None


def _fetch(url: str, *, name: str, limits: Limits) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "retinue"})
    try:
        with urllib.request.urlopen(request, timeout=limits.timeout_s) as answer:
            data: bytes = answer.read(limits.max_bytes + 1)
            return data
    except urllib.error.HTTPError as error:
        what, rule = f"the server answers {error.code} {error.reason}", None
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        what, rule = "cannot be fetched", str(getattr(error, "reason", error))
    raise MediaError(
        what, where=name, rule=rule, fix="check the address, or download the file and name its path"
    )
