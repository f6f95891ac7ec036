"""What the package offers as plain functions over a PATH: one question, many questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from retinue.decode.auto import AutoBudget
from retinue.decode.budget import Budget, budget_of
from retinue.decode.chat import Chat
from retinue.decode.loop import Completion
from retinue.decode.offline import generate as generate_all
from retinue.decode.sampling import SamplingParams
from retinue.hub.load import load
from retinue.hub.resolve import resolve
from retinue.media.source import Source
from retinue.media.video import VideoSource
from retinue.ops.backend import pick_device
from retinue.processor import Processor
from retinue.types import Media, Sample

VisualTokens = int | Literal["auto"] | AutoBudget | None


def chat(
    path: str | Path,
    question: str,
    *,
    images: Sequence[Source | Media] = (),
    videos: Sequence[VideoSource | Media] = (),
    visual_tokens: VisualTokens = None,
    auto_threshold: float | str | Path | None = None,
    device: str = "auto",
    template: str | dict[str, Any] | None = None,
    quant: str | None = None,
    **sampling: Any,
) -> str:
    """The answer of the model at a PATH to one question about any number of pictures and videos.

    images: paths, URLs, bytes or PIL images; videos: files, folders of frames or tuples of
    pictures; one with a number of visual tokens of its own is `Media(source=..., budget=...)`.
    visual_tokens: per view of all others, or "auto" (auto_threshold: the confidence that an answer
    needs, or a file of `retinue eval --fit-auto`), or an AutoBudget; None: the model's default.
    quant: as in `load`; sampling: fields of SamplingParams. For several
    questions load once and use `retinue.decode.chat.Chat`. Raises CheckpointError, ConfigError,
    MediaError, RequestError.
    """
    params = SamplingParams.parse(sampling, where="chat")
    model, processor = load(path, template=template, device=pick_device(device)[0], quant=quant)
    budget = _budget(processor, path, visual_tokens, threshold=auto_threshold)
    talk = Chat(model, processor, params=params, budget=budget)
    return "".join(talk.ask(question, images=images, videos=videos)).strip()


def generate(
    path: str | Path,
    samples: Iterable[Sample],
    *,
    device: str = "auto",
    batch_size: int = 8,
    visual_tokens: VisualTokens = None,
    auto_threshold: float | str | Path | None = None,
    quant: str | None = None,
    **sampling: Any,
) -> Iterator[Completion]:
    """Answers of the model at a PATH to every sample, in order, decoded in batches.

    visual_tokens, auto_threshold: as in `chat`, for pictures whose Media names no budget; quant: as
    in `load`; sampling: fields of SamplingParams. Raises CheckpointError, ConfigError, DataError,
    RequestError.
    """
    params = SamplingParams.parse(sampling, where="generate")
    model, processor = load(path, device=pick_device(device)[0], quant=quant)
    budget = _budget(processor, path, visual_tokens, threshold=auto_threshold)
    return generate_all(
        model, processor, samples, params=params, batch_size=batch_size, budget=budget
    )


def _budget(
    processor: Processor,
    path: str | Path,
    asked: VisualTokens,
    *,
    threshold: float | str | Path | None,
) -> Budget:
    folder = resolve(path, weights=False) if asked == "auto" and threshold is None else None
    return budget_of(processor.plan, asked, threshold=threshold, folder=folder)
