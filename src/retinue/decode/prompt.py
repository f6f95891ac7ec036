"""What a request becomes before decoding: a message, its end ids, its stop strings, its room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retinue.core.errors import RequestError
from retinue.decode.sampling import SamplingParams
from retinue.media import VIDEOS
from retinue.media.source import Source
from retinue.media.video import VideoSource
from retinue.processor import Processor
from retinue.text.parts import on_lines
from retinue.text.template import Template, dump, resolve
from retinue.types import Example, Media, Message, Text


def user_message(
    text: str,
    images: Sequence[Source | Media] = (),
    *,
    videos: Sequence[VideoSource | Media] = (),
    budget: int | None = None,
) -> Message:
    """A question behind its pictures (paths, URLs, data URIs, bytes or PIL images), then videos.

    budget: visual tokens of each picture and frame, None = the model's default; a picture with a
    budget of its own is given as Media.
    """
    media = [
        one
        if isinstance(one, Media)
        else Media(kind="image" if number < len(images) else "video", source=_source(one))
        for number, one in enumerate([*images, *videos])
    ]
    media = [one if one.budget is not None else replace(one, budget=budget) for one in media]
    return Message(role="user", parts=tuple(on_lines([*media, Text(text=text)])))


def _source(medium: Source | VideoSource) -> Any:
    return str(medium) if isinstance(medium, Path) else medium


def with_template(
    processor: Processor, template: Template | str | Mapping[str, Any] | None
) -> Processor:
    """The same processor speaking another dialect; None changes nothing.

    Raises ConfigError for an unknown name.
    """
    if template is None:
        return processor
    spec = processor.spec.model_copy(update={"template": dump(resolve(template))})
    return Processor(processor.plan, tokenizer=processor.tokenizer, spec=spec)


def with_video(processor: Processor, video: str | Mapping[str, Any] | None) -> Processor:
    """The same processor seeing videos another way: a policy's name or its fields; None: as it is.

    Raises ConfigError for an unknown name.
    """
    if video is None:
        return processor
    chosen = {"kind": video} if isinstance(video, str) else dict(video)
    policy: Any = VIDEOS.get(str(chosen.get("kind")))
    spec = processor.spec.model_copy(update={"video": policy.parse(chosen, where="video policy")})
    return Processor(processor.plan, tokenizer=processor.tokenizer, spec=spec)


def end_ids(processor: Processor) -> list[int]:
    """Ids that end an answer: the tokenizer's, and stop marks that are special tokens.

    A special token leaves no text, so that its name would never be found as a stop string.
    """
    tokenizer = processor.tokenizer
    marks = (tokenizer.id_of(text) for text in processor.template.stop if text)
    special = [i for i in marks if i is not None and i in tokenizer.special_ids]
    return list(dict.fromkeys([*tokenizer.eos_ids, *special]))


def with_stops(params: SamplingParams, processor: Processor) -> SamplingParams:
    """The template's stop strings added, where they are text and not special tokens."""
    ends = set(end_ids(processor))
    texts = [
        text
        for text in processor.template.stop
        if text and processor.tokenizer.id_of(text) not in ends
    ]
    return params.model_copy(update={"stop": tuple(dict.fromkeys([*params.stop, *texts]))})


def within_room(params: SamplingParams, processor: Processor, example: Example) -> SamplingParams:
    """The answer limited to the positions that the language model has left.

    Raises RequestError where the prompt alone fills them.
    """
    text = processor.plan.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if not limit or rope.get("rope_type") == "dynamic":  # which stretches to any length
        return params
    room = int(limit) - len(example.tokens)
    if room < 1:
        raise RequestError(
            f"the prompt has {len(example.tokens)} tokens",
            where=f"sample {example.id}",
            rule=f"the language model has {limit} positions, and an answer needs some",
            fix="shorten it, or use fewer pictures or smaller budgets",
        )
    return params.model_copy(update={"max_new_tokens": min(params.max_new_tokens, room)})


def device_of(runner: Any) -> torch.device:
    """Where a runner computes; one that does not say is on the CPU."""
    return torch.device(getattr(runner, "device", "cpu"))
