"""Vocabularies in a `tokenizer.json`, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from retinue.core.errors import CheckpointError
from retinue.text.cut import Cutter, Span
from retinue.text.files import Added, Facts

CONFIG_RULES_BOS = ("Llama", "CodeLlama", "Gemma", "Cohere")
"""Fast classes whose add_bos_token / add_eos_token replace what tokenizer.json says."""


class FastPieces:
    """A `tokenizer.json` with its added tokens; offsets are never trimmed."""

    legacy: bool | None = None

    def __init__(self, facts: Facts) -> None:
        from tokenizers import AddedToken, Tokenizer

        try:
            model: Any = Tokenizer.from_str(facts.files["tokenizer.json"].decode("utf-8"))
        except Exception as error:
            raise CheckpointError(
                "tokenizer.json cannot be read", where=facts.where, rule=str(error)
            ) from None
        model.no_truncation()
        model.no_padding()
        known = {token.content for token in model.get_added_tokens_decoder().values()}
        for token in sorted(facts.added, key=lambda token: (token.id is None, token.id or 0)):
            if token.content not in known:
                fresh = AddedToken(
                    token.content, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip
                )
                (model.add_special_tokens if token.special else model.add_tokens)([fresh])
        self.prefix, self.suffix = _wrapping(model, facts)
        # Only the wrapping and trimmed offsets come from the post-processor: go without it.
        model.post_processor = _none(model)
        self._model = model
        self._blind: Any = None
        tokens = model.get_added_tokens_decoder()
        self.names: dict[int, str] = {i: token.content for i, token in tokens.items()}
        self.special_ids = {i for i, token in tokens.items() if token.special}
        self.ids: dict[str, int] = model.get_vocab(with_added_tokens=True)
        self.size = int(model.get_vocab_size(with_added_tokens=True))
        self.cutter = Cutter(
            Added(content=t.content, special=t.special, lstrip=t.lstrip, rstrip=t.rstrip)
            for t in tokens.values()
        )

    def encode(self, text: str, *, literal: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Ids and character spans; no bos."""
        if not self.cutter.hidden(text, literal):
            found = self._model.encode(text, add_special_tokens=False)
            return list(found.ids), list(found.offsets)
        ids: list[int] = []
        spans: list[Span] = []
        for (start, end), name in self.cutter.cut(text, literal=literal):
            if name is not None:
                ids.append(self.ids[name])
                spans.append((start, end))
                continue
            found = self._without_specials().encode(text[start:end], add_special_tokens=False)
            ids += found.ids
            spans += [(start + a, start + b) for a, b in found.offsets]
        return ids, spans

    def _without_specials(self) -> Any:
        """The same vocabulary, blind to special tokens in its input."""
        if self._blind is None:
            self._blind = type(self._model).from_str(self._model.to_str())
            self._blind.encode_special_tokens = True
        return self._blind

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        return str(self._model.decode(list(ids), skip_special_tokens=skip_special))

    def token(self, id: int) -> str:
        return str(self._model.id_to_token(id) or "")

    def json(self) -> str:
        """The vocabulary with its added tokens as the text of a `tokenizer.json`."""
        return str(self._model.to_str())


def _wrapping(model: Any, facts: Facts) -> tuple[list[int], list[int]]:
    """Ids that an ordinary call puts before and after a text."""
    if facts.class_name.startswith(CONFIG_RULES_BOS) and "add_bos_token" in facts.config:
        sides = []
        for side in ("bos", "eos"):
            name = facts.roles[f"{side}_token"]
            wanted = facts.config.get(f"add_{side}_token") and name
            sides.append([int(model.token_to_id(name))] if wanted else [])
        return sides[0], sides[1]
    bare = model.encode("a", add_special_tokens=False).ids
    full = model.encode("a", add_special_tokens=True).ids
    spare = len(full) - len(bare)
    for at in range(spare + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def _none(model: Any) -> Any:
    from tokenizers import processors

    return processors.Sequence([])
