"""SentencePiece vocabularies with the ids of the slow LLaMA tokenizer of transformers 4.37.

The one place that knows the prefix-space rule. `legacy`: every run of text between special tokens
gets SentencePiece's dummy prefix. Not legacy: only the start of the whole text gets it
(huggingface/transformers#24565 describes the change).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from retinue.core.errors import CheckpointError
from retinue.text.cut import Cutter, Span
from retinue.text.files import Facts

UNDERLINE = "▁"


class SentencePieces:
    """A `tokenizer.model` with its added tokens."""

    def __init__(self, facts: Facts) -> None:
        from sentencepiece import SentencePieceProcessor
        from sentencepiece import sentencepiece_model_pb2 as pb

        proto = facts.files["tokenizer.model"]
        known = facts.class_name.startswith(("Llama", "CodeLlama"))
        stated = facts.config.get("legacy")
        self.legacy: bool | None = (True if stated is None else bool(stated)) if known else None
        self._fresh_prefix = self.legacy is not False
        model = pb.ModelProto()
        try:
            model.ParseFromString(proto)
            self._dummy = bool(model.normalizer_spec.add_dummy_prefix)
            if not self._fresh_prefix:
                model.normalizer_spec.add_dummy_prefix = False
                proto = model.SerializeToString()
            self._model: Any = SentencePieceProcessor(model_proto=proto)
        except Exception as error:
            raise CheckpointError(
                "tokenizer.model is not a SentencePiece model", where=facts.where, rule=str(error)
            ) from None
        self._pieces = [piece.piece for piece in model.pieces]
        self._bytes = [piece.type == model.SentencePiece.BYTE for piece in model.pieces]
        self.ids = {piece: i for i, piece in enumerate(self._pieces)}
        self.special_ids: set[int] = set()
        self.names: dict[int, str] = {}
        for token in sorted(facts.added, key=lambda token: (token.id is None, token.id or 0)):
            self._add(token.content, token.id, special=token.special)
        self.cutter = Cutter(facts.added)
        self.size = max(len(self._pieces), max(self.names, default=-1) + 1)
        self._unk = facts.roles["unk_token"] or "<unk>"
        self._unk_pieces = len(self._spans(self._unk)[0])
        self.prefix = self._wrap(facts, "add_bos_token", "bos_token", default=True)
        self.suffix = self._wrap(facts, "add_eos_token", "eos_token", default=False)

    def _add(self, name: str, id: int | None, *, special: bool) -> None:
        if name in self.ids:
            id = self.ids[name]
        elif id is None:
            id = max([len(self._pieces) - 1, *self.names]) + 1
        self.ids[name], self.names[id] = id, name
        if special:
            self.special_ids.add(id)

    def _wrap(self, facts: Facts, switch: str, role: str, *, default: bool) -> list[int]:
        name = facts.roles[role]
        return [self.ids[name]] if name and facts.config.get(switch, default) else []

    def encode(self, text: str, *, literal: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Ids and character spans; no bos."""
        ids: list[int] = []
        spans: list[Span] = []
        runs = self.cutter.cut(text, literal=literal)
        for i, ((start, end), name) in enumerate(runs):
            if name is None:
                more, places = self._run(text[start:end], first=i == 0)
                ids += more
                spans += [(start + a, start + b) for a, b in places]
                continue
            if i == 0 and not self._fresh_prefix and self.ids[name] not in self.special_ids:
                more, places = self._run("", first=True)
                ids, spans = ids + more, spans + places
            ids.append(self.ids[name])
            spans.append((start, end))
        return ids, spans

    def _run(self, text: str, *, first: bool) -> tuple[list[int], list[Span]]:
        if self._fresh_prefix:
            return self._spans(text)
        text = text.replace(UNDERLINE, " ")
        shift = 0
        if first:
            text, shift = UNDERLINE + text, 1
        if not text.startswith((UNDERLINE, " ")):
            return self._spans(text)
        # Blanks at the very start would be treated as the dummy prefix: hide them behind a word.
        ids, spans = self._spans(self._unk + text)
        cut = self._unk_pieces if len(ids) >= self._unk_pieces else 0
        shift += len(self._unk)
        return ids[cut:], [(max(a - shift, 0), max(b - shift, 0)) for a, b in spans[cut:]]

    def _spans(self, text: str) -> tuple[list[int], list[Span]]:
        from sentencepiece import sentencepiece_pb2 as pb

        found = pb.SentencePieceText()
        found.ParseFromString(self._model.encode(text, out_type="serialized_proto"))
        chars = _char_of_byte(text)
        ids = [int(piece.id) for piece in found.pieces]
        spans = [(chars[piece.begin], chars[piece.end]) for piece in found.pieces]
        # The bytes of one character: only the last one carries its span.
        for i in range(len(ids) - 2, -1, -1):
            if self._is_byte(ids[i]) and spans[i][0] == spans[i][1] == spans[i + 1][0]:
                spans[i] = spans[i + 1]
        return ids, spans

    def _is_byte(self, id: int) -> bool:
        return id < len(self._bytes) and self._bytes[id]

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Text of ids; the dummy prefix of a run that got one is taken away."""
        out: list[str] = []
        run: list[int] = []
        prefixed = True  # the next run starts with a dummy prefix
        for id in ids:
            if id in self.names:
                out.append(self._text(run, prefixed))
                prefixed = self._fresh_prefix or (prefixed and not run)
                run = []
                if not (skip_special and id in self.special_ids):
                    out.append(self.names[id])
            else:
                run.append(id)
        return "".join(out) + self._text(run, prefixed)

    def _text(self, ids: list[int], prefixed: bool) -> str:
        raw = bytearray()
        for id in ids:
            if self._is_byte(id):
                raw.append(int(self._pieces[id][3:5], 16))
            elif 0 <= id < len(self._pieces):
                raw += self._pieces[id].replace(UNDERLINE, " ").encode()
        text = raw.decode("utf-8", errors="replace")
        return text[1:] if prefixed and self._dummy and text.startswith(" ") else text

    def token(self, id: int) -> str:
        if id in self.names:
            return self.names[id]
        return self._pieces[id] if 0 <= id < len(self._pieces) else ""

    def bytes_of(self, id: int) -> bytes:
        """What an id adds to a text, blanks as they are; a name for added and special ones."""
        if id in self.names:
            return self.names[id].encode()
        if self._is_byte(id):
            return bytes([int(self._pieces[id][3:5], 16)])
        return self.token(id).replace(UNDERLINE, " ").encode()


def _char_of_byte(text: str) -> Sequence[int]:
    """Byte offset in UTF-8 -> character offset, at character boundaries."""
    if text.isascii():
        return range(len(text) + 1)
    table: list[int] = []
    for i, char in enumerate(text):
        table += [i] * len(char.encode("utf-8", errors="surrogatepass"))
    return [*table, len(text)]


def spaced(pieces: SentencePieces, ids: Iterable[int]) -> str:
    """The text that the slow tokenizers of InternLM2 and MOSS2 give, special tokens shown.

    The first special token of a run is preceded by a blank, which their chat then kept in its
    history; `decode` gives back what was encoded.
    """
    out, run, special = "", [], False
    for id in ids:
        if id not in pieces.names:
            run.append(id)
            special = False
            continue
        out += "" if special else " "
        out += pieces.decode(run, skip_special=False) + pieces.names[id]
        run, special = [], True
    return out + pieces.decode(run, skip_special=False)
