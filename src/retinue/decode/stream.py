"""Ids -> text as they come: no broken characters, no half of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

BROKEN = "\ufffd"


class Decodes(Protocol):
    """The one method of a processor or tokenizer that streaming needs."""

    def decode(self, ids: Sequence[int], *, skip_special: bool = ...) -> str: ...


class Detokenizer:
    """Grows the text of one answer; `push` returns what may be shown.

    Held back: bytes of an unfinished character, and a tail that may become a stop string. Only a
    window of ids is decoded per step: as many as the last piece of text took, and the new ones.
    """

    def __init__(self, decoder: Decodes, *, stop: Sequence[str] = ()) -> None:
        self.decoder, self.stop = decoder, [text for text in stop if text]
        self.ids: list[int] = []
        self.text = ""
        self.shown = 0
        self.stopped = False
        self._start = self._read = 0

    def push(self, token: int) -> str:
        """Add one id; returns new text that is safe to show and sets `stopped` at a stop string."""
        self.ids.append(token)
        known = self.decoder.decode(self.ids[self._start : self._read], skip_special=True)
        longer = self.decoder.decode(self.ids[self._start :], skip_special=True)
        if longer.endswith(BROKEN) or len(longer) <= len(known):
            return ""
        self.text += longer[len(known) :]
        self._start, self._read = self._read, len(self.ids)
        return self._show()

    def finish(self) -> str:
        """The rest, once no more ids come."""
        if not self.stopped:
            known = self.decoder.decode(self.ids[self._start : self._read], skip_special=True)
            longer = self.decoder.decode(self.ids[self._start :], skip_special=True)
            self.text += longer[len(known) :]
            self._cut()
        rest, self.shown = self.text[self.shown :], len(self.text)
        return rest

    def _cut(self) -> None:
        # What is shown cannot begin a stop string: its tail was held back.
        places = [at for at in (self.text.find(stop, self.shown) for stop in self.stop) if at >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def _show(self) -> str:
        self._cut()
        safe = len(self.text) if self.stopped else len(self.text) - self._held()
        fresh = self.text[self.shown : safe]
        self.shown = max(self.shown, safe)
        return fresh

    def _held(self) -> int:
        """Length of the longest tail that begins a stop string."""
        longest = max((len(stop) for stop in self.stop), default=0)
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stop):
                return size
        return 0
