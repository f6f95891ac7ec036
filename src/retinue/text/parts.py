"""How the parts of a message stand to each other when they come as a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from retinue.types import Media, Part, Text


def on_lines(parts: Iterable[Part]) -> Iterator[Part]:
    """Put a line break between a medium and whatever directly follows it.

    A list of parts says nothing of the space between them; LLaVA's prompts, and the chat templates
    of its conversions, have a line break there. Text that begins with a blank stays as it is.
    """
    after_medium = False
    for part in parts:
        if isinstance(part, Text) and not part.text:
            continue
        if after_medium and isinstance(part, Media):
            yield Text(text="\n")
        elif after_medium and isinstance(part, Text) and not part.text[0].isspace():
            part = Text(text="\n" + part.text)
        yield part
        after_medium = isinstance(part, Media)
