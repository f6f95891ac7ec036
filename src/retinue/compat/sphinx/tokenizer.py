"""The original's tokenizer wrapper over ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from retinue.text.accessory import bare_ids, segment_ids, spaced
from retinue.text.tokenizer import Tokenizer


class SphinxTokenizer:
    """encode with bos and eos on request, and the two ways to encode a text for a search."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.eos_id = int(tokenizer.eos_id or 0)
        self.bos_id = self.eos_id if tokenizer.bos_id is None else int(tokenizer.bos_id)
        self.n_words = tokenizer.vocab_size

    @property
    def need_space_before_segment(self) -> bool:
        """Whether a word inside a text is tokenized as with a blank before it."""
        return spaced(self.tokenizer)

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        """Ids; the names of special tokens are ordinary text."""
        ids = self.tokenizer.encode(s)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_segment(self, s: str) -> list[int]:
        """Ids of a text as they stand after a blank inside a longer one."""
        return segment_ids(s, self.tokenizer)

    def encode_wo_prefix_space(self, s: str) -> list[int]:
        """Ids of a text as they stand right after another character."""
        return bare_ids(s, self.tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; SentencePiece writes an unknown one as a question mark of its own."""
        if self._pieces is None:
            return self.tokenizer.decode(ids)
        text: str = self._pieces.decode(list(ids))
        return text

    @cached_property
    def _pieces(self) -> Any:
        files = self.tokenizer.facts.files
        if "tokenizer.model" not in files or "tokenizer.json" in files:
            return None
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=files["tokenizer.model"])
