"""What an example with few pictures gets: nothing, or pictures that nobody looks at."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol

from PIL import Image
from pydantic import BeforeValidator, Field, SerializeAsAny

from retinue.core.errors import ConfigError
from retinue.core.registry import Registry
from retinue.core.spec import OwnSpec
from retinue.media.resize import colour_of
from retinue.types import Example, Item, Media, Span


class Looks(Protocol):
    """The part of a Processor that draws a picture's views."""

    spec: Any
    plan: Any

    def item(self, media: Media, *, where: str, pixels: bool = True) -> Item: ...


class FillSpec(OwnSpec):
    """A policy for examples with few pictures."""

    kind: str

    @abstractmethod
    def apply(self, example: Example, *, processor: Looks) -> Example:
        """The example with its pictures filled up."""


class NoFill(FillSpec):
    """Examples keep the pictures that they have."""

    kind: Literal["none"] = "none"

    def apply(self, example: Example, *, processor: Looks) -> Example:
        return example


class BlackFill(FillSpec):
    """Up to `count` pictures, the missing ones of the mean colour, and no more than that.

    So the original pads (ChenDelong1999/instruct_flamingo, `--max_img`; what it calls black is zero
    after normalization). No word sees the added ones; they cost the encoder time. Marks of
    pictures beyond `count` stay without a picture. Raises ConfigError for a model whose pictures
    stand among the words.
    """

    kind: Literal["black"] = "black"
    count: int = Field(ge=1)

    def apply(self, example: Example, *, processor: Looks) -> Example:
        if processor.plan.spec.fusion.num_placeholders(2) != 1:
            raise ConfigError(
                "pictures that no word sees",
                where="data.fill",
                rule="only cross-attention can pass over a picture",
                fix="remove data.fill",
            )
        spans = [span for span in example.spans if span.item < self.count]
        items = list(example.items[: self.count])
        stop = len(example.tokens)
        missing = self.count - len(spans)
        if missing > 0:
            blank = blank_item(processor)
            spans += [Span(start=stop, length=0, item=len(items) + k) for k in range(missing)]
            items += [blank] * missing
        return replace(example, spans=spans, items=items)


FILLS: Registry[type[FillSpec]] = Registry(
    "fill",
    {"none": "retinue.data.fill:NoFill", "black": "retinue.data.fill:BlackFill"},
)


FillField = Annotated[SerializeAsAny[FillSpec], BeforeValidator(FILLS.spec_of)]


def blank_item(processor: Looks) -> Item:
    """A picture of the first stream's mean colour, to the grey level."""
    stream = next(iter(processor.spec.streams.values()))
    height, width = stream.size
    picture = Image.new("RGB", (width, height), colour_of(stream.mean))
    return processor.item(Media(source=picture), where="a filling picture")
