"""Cutting a text at its special tokens; shared by both kinds of vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from retinue.text.files import Added

Span = tuple[int, int]


class Cutter:
    """Finds added tokens in a text, leftmost and longest first."""

    def __init__(self, tokens: Iterable[Added]) -> None:
        self.tokens = {token.content: token for token in tokens if token.content}
        self._all = _pattern(self.tokens)
        self._special = _pattern(name for name, token in self.tokens.items() if token.special)

    def cut(self, text: str, *, literal: Sequence[Span] = ()) -> Iterator[tuple[Span, str | None]]:
        """Runs of the text in order: (span, None) ordinary, (span, name) an added token.

        Special tokens that touch a literal span are ordinary text. A token's lstrip and rstrip
        swallow the blanks beside it.
        """
        at = 0
        for start, end, name in self._found(text, literal):
            token = self.tokens[name]
            left = at + len(text[at:start].rstrip()) if token.lstrip else start
            right = end
            if token.rstrip:
                right += len(text[end:]) - len(text[end:].lstrip())
            if left > at:
                yield (at, left), None
            yield (start, end), name
            at = right
        if at < len(text):
            yield (at, len(text)), None

    def hidden(self, text: str, literal: Sequence[Span]) -> bool:
        """Whether a literal span holds the name of a special token."""
        return self._special is not None and any(
            self._blocked(match.span(), literal) for match in self._special.finditer(text)
        )

    def _found(self, text: str, literal: Sequence[Span]) -> Iterator[tuple[int, int, str]]:
        at = 0
        while self._all is not None and (match := self._all.search(text, at)):
            start, end = match.span()
            name = match.group()
            if self.tokens[name].special and self._blocked((start, end), literal):
                at = start + 1
                continue
            yield start, end, name
            at = end

    @staticmethod
    def _blocked(span: Span, literal: Sequence[Span]) -> bool:
        return any(start < span[1] and span[0] < end for start, end in literal)


def _pattern(names: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
