"""Decoding: any picture as RGB, upright, or its size from the header alone.

Colours follow Pillow's convert("RGB") as the original systems do: transparency is dropped, never
blended with a background. Only 16-bit grey differs: it is scaled to 8 bits, not clipped to white.
"""

from __future__ import annotations

import importlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Image as PILImage
from PIL.Image import Transpose
from torch import Tensor

from retinue.core.errors import MediaError
from retinue.core.lazy import need
from retinue.media.resize import to_tensor
from retinue.media.source import DEFAULT_LIMITS, PILLOW_BOMB, Limits, Source, label, open_source

Decoder = Literal["auto", "pil", "simplejpeg"]

DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError),
    *(EOFError, OverflowError, struct.error, zlib.error),
)
"""What Pillow's readers raise on damaged files."""

UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation (tag 274) -> what turns the stored picture upright."""

THROUGH = {"La": "LA", "RGBa": "RGBA"}
"""Modes Pillow cannot turn into RGB in one step."""


def load_image(
    source: Source,
    *,
    root: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    where: str | None = None,
    draft: int | None = None,
    as_stored: bool = False,
) -> PILImage:
    """Decode a path, http(s) URL, data URI, bytes or PIL image to an upright RGB image.

    root: folder of relative paths; where: the sample, for errors; draft: decode a JPEG at a reduced
    scale whose sides are still >= draft pixels (faster, not exact, and the size is the reduced
    one); as_stored: keep the file's own colour mode. Raises MediaError: missing, broken, truncated,
    or beyond `limits`.
    """
    name = label(source, where=where)
    if isinstance(source, PILImage):
        whole = _checked(source, name=name, limits=limits)
        return _decode(whole, name=name, as_stored=as_stored)
    with open_source(source, root=root, limits=limits, where=where) as file:
        image = _header(file, name=name, limits=limits)
        if draft is not None:
            image.draft("RGB", (draft, draft))
        return _decode(image, name=name, as_stored=as_stored)


def load_pixels(
    source: Source,
    *,
    root: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    where: str | None = None,
    decoder: Decoder = "auto",
) -> Tensor:
    """The same pixels as `load_image`, as a uint8 tensor (3, H, W) with channels innermost.

    decoder: `auto` takes simplejpeg for JPEGs where it is installed, else Pillow. Raises MediaError
    like `load_image`, EnvError if simplejpeg is asked for by name and missing.
    """
    if decoder == "simplejpeg":
        need("simplejpeg", extra="fast", purpose="decoder 'simplejpeg'")
    codec = None if decoder == "pil" else _simplejpeg()
    if codec is None or isinstance(source, PILImage):
        return to_tensor(load_image(source, root=root, limits=limits, where=where))
    name = label(source, where=where)
    with open_source(source, root=root, limits=limits, where=where) as file:
        image = _header(file, name=name, limits=limits)
        if image.format in ("JPEG", "MPO") and image.mode == "RGB" and _orientation(image) == 1:
            file.seek(0)
            try:
                array = codec.decode_jpeg(
                    file.read(), colorspace="RGBX", fastdct=False, fastupsample=False
                )
            except ValueError:
                pass  # damaged: Pillow repairs what it can, and says what it cannot
            else:
                return to_tensor(array)
        file.seek(0)
        return to_tensor(_decode(_header(file, name=name, limits=limits), name=name))


def image_size(
    source: Source,
    *,
    root: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
    where: str | None = None,
) -> tuple[int, int]:
    """(height, width) of the upright picture, from its header, without decoding.

    Raises MediaError: missing, no picture, or beyond `limits`; damage further in goes unseen.
    """
    name = label(source, where=where)
    if isinstance(source, PILImage):
        return _upright_size(_checked(source, name=name, limits=limits))
    with open_source(source, root=root, limits=limits, where=where) as file:
        return _upright_size(_header(file, name=name, limits=limits))


def _header(file: BinaryIO, *, name: str, limits: Limits) -> PILImage:
    """A lazily opened image whose size is within the limits."""
    try:
        with _quiet():
            image = Image.open(file)
    except Image.DecompressionBombError:
        raise _too_large(f"more than {PILLOW_BOMB} pixels", name=name, limits=limits) from None
    except DAMAGED as error:
        raise MediaError(
            "no picture that Pillow can read",
            where=name,
            rule="JPEG, PNG, WebP, GIF, TIFF, BMP and the like",
            fix="convert or replace the file",
        ) from error
    return _checked(image, name=name, limits=limits)


def _checked(image: PILImage, *, name: str, limits: Limits) -> PILImage:
    width, height = image.size
    if width * height > limits.max_pixels:
        what = f"{width} x {height} = {width * height} pixels"
        raise _too_large(what, name=name, limits=limits)
    if width * height == 0:
        raise MediaError(f"an empty picture of {width} x {height}", where=name)
    return image


def _too_large(what: str, *, name: str, limits: Limits) -> MediaError:
    return MediaError(
        what,
        where=name,
        rule=f"at most {limits.max_pixels} pixels",
        fix="shrink the picture or raise max_pixels of the image limits",
    )


def _decode(image: PILImage, *, name: str, as_stored: bool = False) -> PILImage:
    """Pixels of an opened image, upright and RGB."""
    turn = UPRIGHT.get(_orientation(image))
    try:
        with _quiet():
            image.load()
            rgb = image if as_stored else _rgb(image)
    except (*DAMAGED, MemoryError) as error:
        raise MediaError(
            "broken or truncated",
            where=name,
            rule=str(error) or type(error).__name__,
            fix="replace the file or drop the sample",
        ) from error
    if turn is not None:
        rgb = rgb.transpose(turn)
        rgb.info = {}  # a second load must not turn it again
    return rgb


def _rgb(image: PILImage) -> PILImage:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    elif image.mode in THROUGH:
        image = image.convert(THROUGH[image.mode])
    return image.convert("RGB")


def _upright_size(image: PILImage) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _orientation(image: PILImage) -> int:
    """EXIF orientation 1..8 from what precedes the pixels; 1 where there is none."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        with _quiet():
            # The base method: PNG's own would decode the picture to look for a trailing chunk.
            value: Any = PILImage.getexif(image).get(ExifTags.Base.Orientation, 1)
    except DAMAGED:
        return 1
    return value if value in UPRIGHT else 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings are dropped: our limits speak for bombs, odd metadata is harmless."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
