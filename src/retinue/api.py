"""What the package offers as plain functions over a PATH: one question, many questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retinue.decode.chat import Chat
from retinue.decode.loop import Completion
from retinue.decode.offline import generate as generate_all
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.media.source import Source
from retinue.media.video import VideoSource
from retinue.ops.backend import pick_device
from retinue.types import Sample


def chat(
    path: str | Path,
    question: str,
    *,
    images: Sequence[Source] = (),
    videos: Sequence[VideoSource] = (),
    device: str = "auto",
    template: str | dict[str, Any] | None = None,
    quant: str | None = None,
    **sampling: Any,
) -> str:
    """The answer of the model at a PATH to one question about any number of pictures and videos.

    images: paths, URLs, bytes or PIL images; videos: files, folders of frames or tuples of
    pictures; quant: as in `load`; sampling: fields of SamplingParams. For several
    questions load once and use `retinue.decode.chat.Chat`. Raises CheckpointError, MediaError,
    RequestError.
    """
    params = SamplingParams.parse(sampling, where="chat")
    model, processor = load(path, template=template, device=pick_device(device)[0], quant=quant)
    answer = "".join(
        Chat(model, processor, params=params).ask(question, images=images, videos=videos)
    )
    return answer.strip()


def generate(
    path: str | Path,
    samples: Iterable[Sample],
    *,
    device: str = "auto",
    batch_size: int = 8,
    quant: str | None = None,
    **sampling: Any,
) -> Iterator[Completion]:
    """Answers of the model at a PATH to every sample, in order, decoded in batches.

    quant: as in `load`; sampling: fields of SamplingParams. Raises CheckpointError, DataError,
    RequestError.
    """
    params = SamplingParams.parse(sampling, where="generate")
    model, processor = load(path, device=pick_device(device)[0], quant=quant)
    return generate_all(model, processor, samples, params=params, batch_size=batch_size)
