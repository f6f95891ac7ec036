"""Writing pictures as a small video file: MKV without loss, or MP4 for any player."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image as PILImage

from retinue.core.errors import ConfigError
from retinue.core.lazy import need
from retinue.media.resize import Size

CODECS = {"mkv": ("ffv1", "bgr0"), "mp4": ("mpeg4", "yuv420p")}
"""Ending -> codec and pixel format, all of FFmpeg's own, which every build has."""


def check_film(ending: str, size: Size) -> None:
    """Raise ConfigError for frames of a (height, width) that the format cannot hold, EnvError
    where the encoder is missing."""
    need("av", extra="video", purpose="writing videos")
    if ending not in CODECS:
        raise ConfigError(f"videos as {ending!r}", rule=f"known: {', '.join(CODECS)}")
    if ending == "mp4" and (size[0] % 2 or size[1] % 2):
        raise ConfigError(
            f"frames of {size[1]} x {size[0]} pixels in MP4",
            rule="both sides are even numbers",
            fix="use mkv, or another size",
        )


def write_video(frames: Sequence[PILImage], path: Path, *, rate: int = 2) -> Path:
    """Write RGB pictures of one size as a video of `rate` frames a second; mkv keeps every level.

    Raises ConfigError for sizes that the format cannot hold, EnvError without the package av.
    """
    av: Any = need("av", extra="video", purpose="writing videos")
    ending = path.suffix.removeprefix(".")
    check_film(ending, (frames[0].height, frames[0].width))
    codec, pixel_format = CODECS[ending]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = pixel_format
        if ending == "mp4":
            stream.codec_context.qmin = stream.codec_context.qmax = 2
        for frame in frames:
            pixels_HWC = np.asarray(frame.convert("RGB"))
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path
