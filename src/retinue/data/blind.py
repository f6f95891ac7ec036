"""A source without its pictures: the words of its records alone."""

from __future__ import annotations

from dataclasses import replace

from retinue.data.formats import Format
from retinue.types import Message, Sample, Text


class Blind:
    """A format whose samples are the words of another's: text alone, or what guessing can reach."""

    def __init__(self, of: Format) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def where(self, index: int) -> str:
        return self.of.where(index)

    def __getitem__(self, index: int) -> Sample:
        sample = self.of[index]
        return replace(sample, messages=tuple(map(worded, sample.messages)))


def worded(message: Message) -> Message:
    """A message without pictures, and without the line breaks that stood beside them."""
    if not any(not isinstance(part, Text) for part in message.parts):
        return message
    text = "".join(part.text for part in message.parts if isinstance(part, Text))
    return replace(message, parts=(Text(text=text.strip("\n")),))
