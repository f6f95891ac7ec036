"""Answers of a given form (JSON of a schema, a regular expression, one of some texts), id by id.

llguidance keeps a parser per answer and says which ids may come next; all others get no chance.
Reference: https://github.com/guidance-ai/llguidance

Legend: V vocabulary.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from retinue.core.errors import RequestError
from retinue.core.lazy import need
from retinue.text.fast import FastPieces
from retinue.text.spm import SentencePieces
from retinue.text.tokenizer import Tokenizer

Form = Literal["json", "regex", "choice"]
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write JSON, so that no model can go on with blanks for ever; a schema's
`x-guidance` may choose another."""
KEPT = 64
"""Grammars that are kept ready."""


class Guide:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def copy(self) -> Guide:
        """Another answer at the same place."""
        return Guide(self.matcher.deep_copy())

    def allow(self, logits_V: Tensor) -> Tensor:
        """Scores with -inf for every id that cannot come next. Raises RequestError if none can."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(bits, bitorder="little")[: len(logits_V)].astype(bool)
        if self.matcher.is_error() or not allowed_V.any():
            reason = self.matcher.get_error().strip().splitlines()
            raise RequestError(
                "no token of the vocabulary continues the answer's form",
                where="response_format",
                rule=reason[0] if reason else None,
            )
        mask_V = torch.from_numpy(allowed_V).to(logits_V.device)
        return logits_V.masked_fill(~mask_V, -torch.inf)

    def accept(self, token: int) -> None:
        """An id joins the answer."""
        self.matcher.consume_token(token)

    @property
    def done(self) -> bool:
        """Whether the form is complete and nothing can follow."""
        return bool(self.matcher.is_stopped()) and not self.matcher.is_error()


class Grammars:
    """Makes guides for one vocabulary; may be used from several threads.

    ends: ids that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Sequence[int]) -> None:
        self.tokenizer, self.ends = tokenizer, sorted(ends)
        self.ready: dict[str, Guide] = {}
        self.lock = threading.Lock()
        self._vocabulary: Any = None

    def guide(self, form: Form, wanted: Any, *, field: str) -> Guide:
        """At the start of an answer. Raises RequestError for what is no valid grammar.

        wanted: a JSON schema, a regular expression, or a list of texts; field: how an error
        names it.
        """
        lib = need("llguidance", extra="serve", purpose="an answer of a given form")
        grammar = _grammar(lib, form, wanted, field=field)
        with self.lock:
            found = self.ready.pop(grammar, None)
            if found is None:
                found = Guide(lib.LLMatcher(self._words(lib), grammar, log_level=0))
                if found.matcher.is_error():
                    lines = found.matcher.get_error().strip().splitlines()
                    raise RequestError(
                        "the grammar is not valid", where=field, rule=" ".join(lines)[:300]
                    )
            self.ready[grammar] = found
            while len(self.ready) > KEPT:
                self.ready.pop(next(iter(self.ready)))
            return found.copy()

    def _words(self, lib: Any) -> Any:
        """llguidance's own view of the vocabulary; made once, since it takes a second."""
        if self._vocabulary is None:
            if not self.ends:
                raise RequestError(
                    "this model has no id that ends an answer", where="response_format"
                )
            pieces, size = self.tokenizer.pieces, self.tokenizer.vocab_size
            if isinstance(pieces, FastPieces):
                self._vocabulary = lib.LLTokenizer(pieces.json(), n_vocab=size, eos_token=self.ends)
            else:
                assert isinstance(pieces, SentencePieces)
                wrapped = lib.TokenizerWrapper(_Words(pieces, size, self.ends[0]))
                self._vocabulary = lib.LLTokenizer(wrapped, n_vocab=size, eos_token=self.ends)
        return self._vocabulary


class _Words:
    """A SentencePiece vocabulary as llguidance wants it: the bytes of every id."""

    def __init__(self, pieces: SentencePieces, size: int, end: int) -> None:
        self.pieces, self.eos_token_id, self.bos_token_id = pieces, end, None
        self.tokens = [pieces.bytes_of(id) for id in range(size)]
        self.special_token_ids = sorted({*pieces.special_ids, end})

    def __call__(self, text: str) -> list[int]:
        return self.pieces.encode(text, literal=[(0, len(text))])[0]


def _grammar(lib: Any, form: Form, wanted: Any, *, field: str) -> str:
    matcher = lib.LLMatcher
    try:
        if form == "json":
            return str(matcher.grammar_from_json_schema(json.dumps(wanted), defaults=SPACING))
        if form == "regex":
            return str(matcher.grammar_from_regex(str(wanted)))
    except ValueError as error:
        raise RequestError("is no JSON schema", where=field, rule=str(error)[:300]) from None
    return str(matcher.grammar_from_regex("|".join(re.escape(text) for text in wanted)))
