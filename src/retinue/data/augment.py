"""What happens to a sample's pictures on their way into training: nothing, or a chance mirror."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Annotated, Any, Literal, Protocol

from PIL import ImageOps
from pydantic import BeforeValidator, Field, SerializeAsAny

from retinue.core.registry import Registry
from retinue.core.seed import stream_seed
from retinue.core.spec import OwnSpec
from retinue.media.image import load_image
from retinue.types import Media, Sample


class Unfolds(Protocol):
    """The part of a Processor that makes pictures of videos."""

    spec: Any

    def unfold(self, sample: Sample, *, pixels: bool = True) -> Sample: ...


class AugmentSpec(OwnSpec):
    """A policy for the pictures of training samples; a picture keeps its size."""

    kind: str

    @abstractmethod
    def apply(
        self, sample: Sample, *, seed: int, epoch: int, index: int, processor: Unfolds
    ) -> Sample:
        """The sample as this epoch shows it: a function of seed, epoch and its index.

        Raises MediaError for a picture that cannot be read.
        """


class NoAugment(AugmentSpec):
    """Pictures stay as they are."""

    kind: Literal["none"] = "none"

    def apply(
        self, sample: Sample, *, seed: int, epoch: int, index: int, processor: Unfolds
    ) -> Sample:
        return sample


class Flip(AugmentSpec):
    """Left and right exchanged, with chance `share`, in all pictures of a sample or in none.

    OpenFlamingo's pre-training does so (its `RandomHorizontalFlip` sees the pictures of a sequence
    stacked). Words are not changed: not for data that tell left from right, read letters, or have
    boxes.
    """

    kind: Literal["flip"] = "flip"
    share: float = Field(default=0.5, ge=0, le=1)

    def apply(
        self, sample: Sample, *, seed: int, epoch: int, index: int, processor: Unfolds
    ) -> Sample:
        draw = Random(stream_seed(seed, "flip", epoch, index)).random()
        if draw >= self.share or not sample.media:
            return sample
        where, stored = f"sample {sample.id}", processor.spec.views.stored

        def mirror(media: Media) -> Media:
            assert media.kind == "image", "videos are unfolded first"
            assert not isinstance(media.source, tuple)
            picture = load_image(media.source, where=where, as_stored=stored)
            return replace(media, source=ImageOps.mirror(picture))

        return with_pictures(processor.unfold(sample), mirror)


def with_pictures(sample: Sample, change: Callable[[Media], Media]) -> Sample:
    """The sample with other pictures in the same places."""
    messages = tuple(
        replace(
            message,
            parts=tuple(
                change(part) if isinstance(part, Media) else part for part in message.parts
            ),
        )
        for message in sample.messages
    )
    return replace(sample, messages=messages)


AUGMENTS: Registry[type[AugmentSpec]] = Registry(
    "augment",
    {"none": "retinue.data.augment:NoAugment", "flip": "retinue.data.augment:Flip"},
)


AugmentField = Annotated[SerializeAsAny[AugmentSpec], BeforeValidator(AUGMENTS.spec_of)]
