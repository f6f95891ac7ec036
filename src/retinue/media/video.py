"""Decoding videos: how many frames, how large, and the frames asked for, by PyAV under limits.

A clip is a video file (path, URL, data URI, bytes), a folder of pictures in the order of their
names, or a tuple of pictures. Frame k is the k-th in the order of display; nothing is dropped or
repeated to reach a constant rate.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.Image import Image as PILImage
from pydantic import Field

from retinue.core.errors import MediaError
from retinue.core.lazy import need
from retinue.media.image import load_image
from retinue.media.source import Limits, label, open_source

VideoSource = str | bytes | Path | tuple[str | PILImage, ...]

DEMUXERS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc,apng"
"""Containers that are read: none of those that name further files or addresses (playlists)."""

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


class VideoLimits(Limits):
    """What a video may cost: Limits of the file and of one frame, and of the whole clip.

    max_frames: frames of the clip, used or not; decode_s: seconds of decoding.
    """

    max_bytes: int = Field(default=4 * 2**30, gt=0)
    max_frames: int = Field(default=1_000_000, gt=0)
    decode_s: float = Field(default=300.0, gt=0)


VIDEO_LIMITS = VideoLimits()


class Clip:
    """An opened video: `frames()` counts, `size` tells (height, width), `read` decodes."""

    def __init__(self, file: BinaryIO, *, name: str, limits: VideoLimits) -> None:
        self.av = need("av", extra="video", purpose="reading videos")
        self.name, self.limits = name, limits
        self.until = time.monotonic() + limits.decode_s
        with self._damage():
            self.container = self.av.open(file, options={"format_whitelist": DEMUXERS})
        if not self.container.streams.video:
            self.close()
            raise MediaError(
                "no moving pictures in it", where=name, rule="a video stream is needed"
            )
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"

    def close(self) -> None:
        with suppress(Exception):
            self.container.close()

    def times(self, *, most: int | None = None) -> tuple[list[int | None], list[int]]:
        """Time stamps of the frames in the order of display, and those of the keyframes.

        most: stop after so many frames. Where one has no stamp, all are None and no keyframe is
        named. Nothing is decoded.
        """
        stamps: list[Any] = []
        keys: list[int] = []
        with self._damage():
            self.container.seek(0, stream=self.stream)
            kept = (p for p in self.container.demux(self.stream) if p.size and not p.is_discard)
            for packet in islice(kept, most):
                stamps.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(int(packet.pts))
                self._hurry()
                if len(stamps) > self.limits.max_frames:
                    raise MediaError(
                        f"more than {self.limits.max_frames} frames",
                        where=self.name,
                        rule="max_frames of the video limits",
                        fix="cut the video",
                    )
        if not stamps:
            raise MediaError("a video without a frame", where=self.name, fix="replace the file")
        if any(stamp is None for stamp in stamps):
            return [None] * len(stamps), []
        return sorted(stamps), sorted(keys)

    def read(self, wanted: Sequence[int]) -> list[PILImage]:
        """The frames of these numbers, upright and RGB. Raises MediaError where one is missing."""
        stamps, keys = self.times()
        found: dict[int, PILImage] = {}
        with self._damage():
            self.container.seek(0, stream=self.stream)
            numbered = enumerate(self.container.decode(self.stream))
            seen = -math.inf
            for number in sorted(set(wanted)):
                stamp = stamps[number] if number < len(stamps) else None
                near = bisect_right(keys, stamp) if stamp is not None else 0
                if near and stamp is not None and keys[near - 1] > max(seen, keys[0]):
                    self.container.seek(keys[near - 1], stream=self.stream)
                    numbered = enumerate(self.container.decode(self.stream))
                for count, frame in numbered:
                    self._hurry()
                    seen = frame.pts if frame.pts is not None else seen
                    if count >= number if stamp is None else seen >= stamp:
                        found[number] = self._picture(frame)
                        break
                else:
                    raise MediaError(
                        f"frame {number} of {len(stamps)} cannot be decoded",
                        where=self.name,
                        rule="the file is broken or truncated",
                        fix="replace the file or drop the sample",
                    )
        return [found[number] for number in wanted]

    def size(self) -> tuple[int, int]:
        """(height, width) of an upright frame, from the first one."""
        picture = self.read_first()
        return picture.height, picture.width

    def read_first(self) -> PILImage:
        """The first frame, without a look at the others."""
        with self._damage():
            self.container.seek(0, stream=self.stream)
            for frame in self.container.decode(self.stream):
                return self._picture(frame)
        raise MediaError("a video without a frame", where=self.name, fix="replace the file")

    def _picture(self, frame: Any) -> PILImage:
        if frame.width * frame.height > self.limits.max_pixels:
            raise MediaError(
                f"frames of {frame.width} x {frame.height} pixels",
                where=self.name,
                rule=f"at most {self.limits.max_pixels} pixels",
                fix="shrink the video or raise max_pixels of the video limits",
            )
        pixels_HWC = frame.to_ndarray(format="rgb24")
        turns = round(frame.rotation / 90) % 4
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels_HWC, turns)))

    def _hurry(self) -> None:
        if time.monotonic() > self.until:
            raise MediaError(
                f"decoding takes longer than {self.limits.decode_s:g} s",
                where=self.name,
                rule="decode_s of the video limits",
                fix="cut the video or store it with more keyframes",
            )

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """FFmpeg's errors as ours."""
        try:
            yield
        except (self.av.error.FFmpegError, ValueError, MemoryError) as error:
            raise MediaError(
                "no video that can be read",
                where=self.name,
                rule=str(getattr(error, "strerror", None) or error),
                fix="convert the file (MP4, MKV, WebM, AVI, GIF are read) or drop the sample",
            ) from error


@contextmanager
def open_clip(
    source: str | bytes | Path,
    *,
    root: Path | None = None,
    limits: VideoLimits = VIDEO_LIMITS,
    where: str | None = None,
) -> Iterator[Clip]:
    """A video file, opened. Raises MediaError (missing, broken, too large), EnvError without av."""
    name = label(source, where=where).replace("image of", "video of")
    need("av", extra="video", purpose="reading videos")
    with open_source(source, root=root, limits=limits, where=where) as file:
        clip = Clip(file, name=name, limits=limits)
        try:
            yield clip
        finally:
            clip.close()


def listed(
    source: VideoSource, *, root: Path | None = None, where: str | None = None
) -> list[str | PILImage] | None:
    """The pictures of a frame list: a tuple's members or a folder's files; None for a video file.

    Raises MediaError for one without pictures.
    """
    if isinstance(source, tuple):
        if not source:
            raise MediaError("a video of no frames", where=where, fix="name its pictures")
        return [
            str(root / member) if root and isinstance(member, str) else member for member in source
        ]
    if isinstance(source, bytes) or str(source).startswith(("data:", "http://", "https://")):
        return None
    folder = root / source if root else Path(source)
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise MediaError(
            "a folder without pictures",
            where=f"{where}: {folder}" if where else str(folder),
            rule="a folder is a video of its pictures, in the order of their names",
            fix="name a video file, or a folder of PNG or JPEG frames",
        )
    return [str(file) for file in files]


def load_frames(pictures: Sequence[str | PILImage], *, where: str | None = None) -> list[PILImage]:
    """Listed frames, decoded. Raises MediaError naming the broken one."""
    return [load_image(picture, where=where) for picture in pictures]
