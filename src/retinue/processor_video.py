"""Videos inside messages become pictures before anything else is done with a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL.Image import Image as PILImage

from retinue.core.errors import DataError
from retinue.media.frames import VideoPolicy
from retinue.text.template import Template
from retinue.types import Media, Message, Part, Text


def unfold(
    messages: Sequence[Message],
    *,
    policy: VideoPolicy,
    template: Template,
    where: str,
    pixels: bool = True,
) -> tuple[Message, ...]:
    """Messages whose videos are pictures; each stands on a line of its own, as pictures do.

    pixels=False: blank pictures of the right sizes. Raises DataError where the template shows one
    picture of a message and the policy makes several.
    """
    made = [replace(m, parts=tuple(_parts(m, policy, template, where, pixels))) for m in messages]
    if template.placement == "collapse":
        for before, after in zip(messages, made, strict=True):
            if len(after.media) > len(before.media):
                raise DataError(
                    f"a video of {len(after.media)} pictures",
                    where=where,
                    rule=f"the template {template.name!r} shows one picture of a message",
                    fix="choose the video policy 'collage' (model.video={kind: collage})",
                )
    return tuple(made)


def _parts(
    message: Message, policy: VideoPolicy, template: Template, where: str, pixels: bool
) -> Iterator[Part]:
    # the other placements write line breaks themselves
    breaks = template.placement == "keep"
    for part in message.parts:
        if isinstance(part, Text) or part.kind == "image":
            yield part
            continue
        for number, picture in enumerate(_pictures(part, policy, where, pixels)):
            if number and breaks:
                yield Text(text="\n")
            name = f"{part.name}#{number}" if part.name else None
            yield Media(source=picture, name=name, budget=part.budget)


def _pictures(video: Media, policy: VideoPolicy, where: str, pixels: bool) -> list[PILImage]:
    if isinstance(video.source, PILImage):
        raise DataError(
            "a picture in place of a video",
            where=where,
            rule="a video is a path, URL, data URI, bytes, a folder or a tuple of pictures",
            fix="give the picture as an image, or (picture,) as a video",
        )
    return (policy.pictures if pixels else policy.blanks)(video.source, where=where)
