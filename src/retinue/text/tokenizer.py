"""Tokenizer: one face over `tokenizer.json` and SentencePiece vocabularies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from retinue.core.errors import CheckpointError, ConfigError
from retinue.text.cut import Cutter, Span
from retinue.text.fast import FastPieces
from retinue.text.files import Facts, read_facts, read_folder
from retinue.text.spm import SentencePieces

IMAGE = "<image>"


class Pieces(Protocol):
    """What both kinds of vocabulary offer."""

    legacy: bool | None
    size: int
    prefix: list[int]
    suffix: list[int]
    ids: dict[str, int]
    names: dict[int, str]
    special_ids: set[int]
    cutter: Cutter

    def encode(self, text: str, *, literal: Sequence[Span]) -> tuple[list[int], list[Span]]: ...
    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str: ...
    def token(self, id: int) -> str: ...


class Tokenizer:
    """Text to ids and back, with character offsets.

    The name of a special token inside a text is ordinary text unless `specials=True`, so that no
    user can end a turn by writing `</s>`. `model_vocab`: rows of the model's embedding table.
    `image_in_text`: prompts are tokenized in one piece with `<image>` inside, as transformers does,
    instead of run by run between pictures, as LLaVA does.
    """

    image_in_text: bool = False

    def __init__(
        self, files: Mapping[str, bytes], *, model_vocab: int = 0, where: str = ""
    ) -> None:
        self.facts: Facts = read_facts(files, where=where or "tokenizer")
        self.model_vocab = model_vocab
        fast = "tokenizer.json" in self.facts.files
        self.pieces: Pieces = FastPieces(self.facts) if fast else SentencePieces(self.facts)

    @classmethod
    def load(cls, folder: str | Path, *, model_vocab: int = 0, slow: bool = False) -> Tokenizer:
        """Read a folder; `slow` prefers tokenizer.model where both kinds are present.

        Raises CheckpointError where there is no vocabulary, or a broken one.
        """
        files = read_folder(folder)
        if slow and "tokenizer.model" in files:
            files.pop("tokenizer.json", None)
        return cls(files, model_vocab=model_vocab, where=str(folder))

    def save(self, folder: str | Path) -> None:
        """Write the files this tokenizer was read from."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        for name, data in self.facts.files.items():
            (root / name).write_bytes(data)

    def with_tokens(self, names: Sequence[str], *, pad: str | None = None) -> Tokenizer:
        """The same vocabulary with special tokens appended; `pad` names the padding token."""
        config = dict(self.facts.config)
        decoder = dict(config.get("added_tokens_decoder") or {})
        fresh = [name for name in dict.fromkeys(names) if self.id_of(name) is None]
        everyone = {i: self.pieces.names[i] for i in sorted(self.pieces.names)}
        everyone |= {self.vocab_size + k: name for k, name in enumerate(fresh)}
        for i, name in everyone.items():
            special = i in self.pieces.special_ids or i >= self.vocab_size
            flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
            decoder.setdefault(str(i), {"content": name, **flags, "special": special})
        config["added_tokens_decoder"] = decoder
        config |= {role: name for role, name in self.facts.roles.items() if name}
        config |= {"pad_token": pad} if pad else {}
        text = json.dumps(config, indent=2, ensure_ascii=False)
        files = {**self.facts.files, "tokenizer_config.json": text.encode("utf-8")}
        return Tokenizer(files, model_vocab=self.model_vocab, where=self.facts.where)

    # ------------------------------------------------------------ encoding

    def encode(self, text: str, *, bos: bool = False, specials: bool = False) -> list[int]:
        """Ids of a text; `bos` puts bos first, `specials` lets special-token names be tokens."""
        return self.encode_with_offsets(text, bos=bos, specials=specials)[0]

    def encode_with_offsets(
        self,
        text: str,
        *,
        bos: bool = False,
        specials: bool = False,
        literal: Sequence[Span] = (),
    ) -> tuple[list[int], list[Span]]:
        """Ids and the [start, end) characters each stands for.

        The bytes of one character share its span; a prefix that stands for no character has an
        empty span at the character it precedes. With `specials`, spans in `literal` stay text.
        """
        ids, spans = self.pieces.encode(text, literal=literal if specials else [(0, len(text))])
        if bos:
            ids, spans = [self._need("bos_token"), *ids], [(0, 0), *spans]
        return ids, spans

    def call(self, text: str, *, max_length: int | None = None) -> list[int]:
        """Ids as transformers' own call gives them: special tokens live, bos and eos by config.

        `max_length` cuts the text's end, so that all ids together are at most that many.
        """
        ids = self.encode(text, specials=True)
        wrap = len(self.pieces.prefix) + len(self.pieces.suffix)
        if max_length is not None:
            ids = ids[: max(max_length - wrap, 0)]
        return [*self.pieces.prefix, *ids, *self.pieces.suffix]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids. Nothing is tidied: what was encoded comes back (a literal "▁" as blank)."""
        return self.pieces.decode(ids, skip_special=skip_special)

    def id_of(self, token: str) -> int | None:
        """Id of one token of the vocabulary, None if it has no such token."""
        return self.pieces.ids.get(token)

    def token_of(self, id: int) -> str:
        """A token as the vocabulary spells it, "" for an id it does not have."""
        return self.pieces.token(id)

    # ------------------------------------------------------------ facts

    @property
    def adds_bos(self) -> bool:
        """Whether a prompt starts with bos."""
        return self.bos_id is not None and self.pieces.prefix[:1] == [self.bos_id]

    @property
    def legacy(self) -> bool | None:
        """The `legacy` attribute of the slow LLaMA class; None for every other class."""
        return self.pieces.legacy

    @property
    def bos_id(self) -> int | None:
        return self._role("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._role("eos_token")

    @property
    def unk_id(self) -> int | None:
        return self._role("unk_token")

    @property
    def pad_id(self) -> int:
        """The padding id; unk, else eos, else 0 where none is named."""
        found = (self._role(f"{role}_token") for role in ("pad", "unk", "eos"))
        return next((id for id in found if id is not None), 0)

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends an answer: eos and those of generation_config.json."""
        own = [] if self.eos_id is None else [self.eos_id]
        return list(dict.fromkeys([*own, *self.facts.eos_ids]))

    @property
    def special_ids(self) -> set[int]:
        return set(self.pieces.special_ids)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.pieces.size

    @property
    def image_id(self) -> int:
        """Placeholder id: `<image>` if the vocabulary has it, else one that no text can give."""
        own = self.id_of(IMAGE)
        return own if own is not None else max(self.vocab_size, self.model_vocab)

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template of the folder."""
        return self.facts.chat_template

    def token_text(self, role: str) -> str | None:
        """The text of the bos, eos, unk or pad token."""
        return self.facts.roles[f"{role}_token"]

    def hf(self) -> Any:
        """A transformers tokenizer over the same files."""
        import tempfile

        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            if "tokenizer.json" in self.facts.files:
                return PreTrainedTokenizerFast.from_pretrained(folder)
            try:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            except ValueError as error:
                raise CheckpointError(
                    "transformers has no tokenizer class for these files",
                    where=self.facts.where,
                    rule=str(error).splitlines()[0],
                ) from None

    def _role(self, role: str) -> int | None:
        name = self.facts.roles[role]
        return None if name is None else self.id_of(name)

    def _need(self, role: str) -> int:
        id = self._role(role)
        if id is None:
            raise ConfigError(f"the vocabulary has no {role}", where=self.facts.where)
        return id
