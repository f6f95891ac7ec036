"""Stopping at keywords while ids arrive, by LLaVA's rule."""

from __future__ import annotations

from collections.abc import Sequence

from retinue.text.tokenizer import Tokenizer


class KeywordsStopping:
    """True once every row ends in a keyword's ids, or has a keyword in its decoded tail.

    The tail is as long as the longest keyword's ids. `prompt_length`: ids that are the prompt's.
    """

    def __init__(
        self, keywords: Sequence[str], *, tokenizer: Tokenizer, prompt_length: int
    ) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length
        self.keyword_ids = [self._ids(keyword) for keyword in keywords]
        self.longest = max(map(len, self.keyword_ids), default=0)

    def _ids(self, keyword: str) -> list[int]:
        ids = self.tokenizer.call(keyword)
        return ids[1:] if len(ids) > 1 and ids[0] == self.tokenizer.bos_id else ids

    def row_done(self, ids: Sequence[int]) -> bool:
        """Whether one row, prompt included, has come to a keyword."""
        row = list(ids)
        if any(row[-len(keyword) :] == keyword for keyword in self.keyword_ids if keyword):
            return True
        tail = min(len(row) - self.prompt_length, self.longest)
        # With nothing generated the original's slice `[-0:]` is the whole row.
        text = self.tokenizer.decode(row[-tail:] if tail else row)
        return any(keyword in text for keyword in self.keywords)

    def __call__(self, rows: Sequence[Sequence[int]]) -> bool:
        return all(self.row_done(row) for row in rows)
