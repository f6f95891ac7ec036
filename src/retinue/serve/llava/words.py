"""Ids to text in the pieces of transformers' TextIteratorStreamer: whole words, one piece an id."""

from __future__ import annotations

from collections.abc import Sequence

from retinue.decode.stream import Decodes

IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
"""Characters that are shown at once; other words are shown when a blank ends them."""


class Words:
    """`push` an id, get the text that is shown then (often none); `finish` gives the rest.

    Ids since the last line break are decoded together, as transformers 4.37 does.
    """

    def __init__(self, decoder: Decodes) -> None:
        self.decoder = decoder
        self.ids: list[int] = []
        self.shown = 0

    def push(self, token: int) -> str:
        self.ids.append(token)
        text = self._text(self.ids)
        if text.endswith("\n"):
            fresh, self.ids, self.shown = text[self.shown :], [], 0
            return fresh
        end = len(text)
        if not text or not any(low <= ord(text[-1]) <= high for low, high in IDEOGRAPHS):
            end = text.rfind(" ") + 1
        fresh = text[self.shown : end]
        self.shown += len(fresh)
        return fresh

    def finish(self) -> str:
        return self._text(self.ids)[self.shown :] if self.ids else ""

    def _text(self, ids: Sequence[int]) -> str:
        return self.decoder.decode(ids, skip_special=True)
