"""The video-policy seam: which frames of a video the model sees, and as how many pictures."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image
from PIL.Image import Image as PILImage
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch.nn.functional import interpolate

from retinue.core.errors import MediaError
from retinue.core.spec import OwnSpec
from retinue.media import VIDEOS
from retinue.media.image import image_size
from retinue.media.resize import Size, size_of, to_pil, to_tensor
from retinue.media.video import (
    VIDEO_LIMITS,
    VideoLimits,
    VideoSource,
    listed,
    load_frames,
    open_clip,
)

Sampling = Literal["steps", "ends"]
WHITE = (255, 255, 255)


def pick(total: int, count: int, *, sampling: Sampling = "steps") -> list[int]:
    """Numbers of `count` frames spread evenly over `total`; all of them where there are fewer.

    steps: 0, k, 2k, ... with k = total // count (IG-VLM, arXiv 2403.18406); ends: from the first
    to the last, rounded.
    """
    if total <= count:
        return list(range(total))
    if sampling == "steps" or count == 1:
        return [i * (total // count) for i in range(count)]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


class VideoPolicy(OwnSpec):
    """Base of all video policies; `pictures` and `blanks` always agree in number and sizes.

    count: frames that are seen; sampling: see `pick`.
    """

    kind: str
    count: int = Field(default=6, ge=1, le=4096)
    sampling: Sampling = "steps"

    def pictures(
        self,
        source: VideoSource,
        *,
        root: Path | None = None,
        limits: VideoLimits = VIDEO_LIMITS,
        where: str | None = None,
    ) -> list[PILImage]:
        """The pictures that stand for a video, upright and RGB.

        Raises MediaError: missing, broken, no or too few frames, beyond `limits`; EnvError where
        the decoder is not installed.
        """
        frames = listed(source, root=root, where=where)
        if frames is not None:
            chosen = self.chosen(len(frames), where=where)
            return self.arranged(load_frames([frames[k] for k in chosen], where=where))
        assert not isinstance(source, tuple)
        with open_clip(source, root=root, limits=limits, where=where) as clip:
            total = len(clip.times()[0])
            return self.arranged(clip.read(self.chosen(total, where=clip.name)))

    def blanks(
        self,
        source: VideoSource,
        *,
        root: Path | None = None,
        limits: VideoLimits = VIDEO_LIMITS,
        where: str | None = None,
    ) -> list[PILImage]:
        """Grey pictures of the sizes that `pictures` will have, from headers and one frame."""
        frames = listed(source, root=root, where=where)
        if frames is not None:
            chosen = self.chosen(len(frames), where=where)
            sizes = [image_size(frames[k], where=where) for k in chosen]
        else:
            assert not isinstance(source, tuple)
            with open_clip(source, root=root, limits=limits, where=where) as clip:
                total = len(clip.times(most=self.count)[0])
                sizes = [clip.size()] * len(self.chosen(total, where=clip.name))
        shapes = self.shapes(sizes)
        blank = {size: Image.new("L", (size[1], size[0])) for size in set(shapes)}
        return [blank[size] for size in shapes]

    def chosen(self, total: int, *, where: str | None) -> list[int]:
        """Numbers of the frames to show of a video of `total`."""
        del where
        return pick(total, self.count, sampling=self.sampling)

    @abstractmethod
    def arranged(self, frames: list[PILImage]) -> list[PILImage]:
        """The pictures made of the chosen frames."""

    @abstractmethod
    def shapes(self, sizes: list[Size]) -> list[Size]:
        """(height, width) of those pictures, from those of the frames."""


class Frames(VideoPolicy):
    """Every chosen frame a picture of its own, with the full budget of visual tokens each."""

    kind: Literal["frames"] = "frames"

    def arranged(self, frames: list[PILImage]) -> list[PILImage]:
        return frames

    def shapes(self, sizes: list[Size]) -> list[Size]:
        return sizes


class Collage(VideoPolicy):
    """The chosen frames in one picture, row by row: IG-VLM's image grid (arXiv 2403.18406).

    round(sqrt(count)) columns; white fills the last row; frames of different sizes are brought to
    the smallest height and width. A video of fewer than `count` frames is refused.
    """

    kind: Literal["collage"] = "collage"

    def chosen(self, total: int, *, where: str | None) -> list[int]:
        if total < self.count:
            raise MediaError(
                f"{total} frame{'s' * (total != 1)}",
                where=where,
                rule=f"a collage needs {self.count}",
                fix="use a longer video, a smaller count, or the video policy 'frames'",
            )
        return super().chosen(total, where=where)

    def arranged(self, frames: list[PILImage]) -> list[PILImage]:
        return [collage(frames)]

    def shapes(self, sizes: list[Size]) -> list[Size]:
        rows, columns = grid_of(len(sizes))
        return [(rows * min(h for h, _ in sizes), columns * min(w for _, w in sizes))]


VideoPolicyField = Annotated[SerializeAsAny[VideoPolicy], BeforeValidator(VIDEOS.spec_of)]


def grid_of(count: int) -> tuple[int, int]:
    """(rows, columns) of a collage of `count` frames."""
    columns = round(math.sqrt(count))
    return math.ceil(count / columns), columns


def collage(frames: Sequence[PILImage]) -> PILImage:
    """Frames row by row in one picture; see `Collage`."""
    rows, columns = grid_of(len(frames))
    height, width = min(f.height for f in frames), min(f.width for f in frames)
    canvas = Image.new("RGB", (columns * width, rows * height), WHITE)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        canvas.paste(_bilinear(frame, (height, width)), (column * width, row * height))
    return canvas


def _bilinear(frame: PILImage, size: Size) -> PILImage:
    """Bilinear without a wider filter when shrinking, as OpenCV; within a grey level of it."""
    if size_of(frame) == size:
        return frame
    pixels_CHW = to_tensor(frame).to(torch.float32)
    resized = interpolate(pixels_CHW[None], size=size, mode="bilinear", antialias=False)[0]
    return to_pil(resized.round().clamp(0, 255).to(torch.uint8))
