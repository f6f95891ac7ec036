"""The tokenizer of a preparation: ids with their places in the text, and chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast

from retinue.core.errors import ConfigError

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)


class Words:
    """A folder's tokenizer.json with the image token added if it lacks it.

    Raises ConfigError for a folder without tokenizer.json.
    """

    def __init__(self, folder: Path, *, image_token: str | None, template: str | None) -> None:
        file = folder / "tokenizer.json"
        if not file.exists():
            raise ConfigError(
                "no tokenizer.json",
                where=str(folder),
                rule="places of tokens in the text are only known with it",
                fix="save the tokenizer once with transformers, use_fast=True",
            )
        self.fast = Fast.from_file(str(file))
        self.fast.no_truncation()
        self.fast.no_padding()
        config = folder / "tokenizer_config.json"
        self.config = json.loads(config.read_text("utf-8")) if config.exists() else {}
        self.image_id: int | None = None
        if image_token is not None:
            if self.fast.token_to_id(image_token) is None:
                self.fast.add_special_tokens([AddedToken(image_token, special=True)])
            self.image_id = self.fast.token_to_id(image_token)
        own = self.config.get("chat_template")
        self.template = template or (own if isinstance(own, str) else None)
        self.default_template = self.template is None

    def token(self, role: str) -> str | None:
        """The text of bos, eos, pad or sep."""
        found = self.config.get(f"{role}_token")
        text = found.get("content") if isinstance(found, Mapping) else found
        return None if text is None else str(text)

    def id(self, role: str) -> int | None:
        text = self.token(role)
        found: int | None = None if text is None else self.fast.token_to_id(text)
        return found

    @property
    def size(self) -> int:
        """Tokens in all, added ones included."""
        return int(self.fast.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the (start, end) characters of each."""
        found = self.fast.encode(text, add_special_tokens=special)
        return list(found.ids), list(found.offsets)

    @cached_property
    def _rendering(self) -> Any:
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )

        def fail(message: str) -> None:
            raise ConfigError(message, where="dataset.chat_template")

        env.globals["raise_exception"] = fail
        return env.from_string(self.template or CHATML)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation, without an opening for a reply."""
        names = {f"{role}_token": self.token(role) or "" for role in ("bos", "eos", "pad", "unk")}
        text: str = self._rendering.render(messages=messages, add_generation_prompt=False, **names)
        return text


def cleaner(*, ftfy: bool, normalizer: str | None, wikitext: bool) -> Any:
    """What is done to every text region."""
    fix = None
    if ftfy:
        from retinue.core.lazy import need

        module = need("ftfy", extra="hdf5", purpose="processing.use_ftfy")

        def fix(text: str) -> str:
            found: str = module.fix_text(text, normalization=normalizer)
            return found

    def clean(text: str) -> str:
        if wikitext:
            text = detokenize(text)
        return text if fix is None else fix(text)

    return clean


WIKITEXT: Sequence[tuple[str, str]] = (
    ("s '", "s'"),
    (r"/' [0-9]/", r"/'[0-9]/"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" " + chr(176) + " ", chr(176)),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
"""Marks of WikiText's tokenization -> plain punctuation, in order."""


def detokenize(text: str) -> str:
    """WikiText's tokenized text as prose."""
    for mark, plain in WIKITEXT:
        text = text.replace(mark, plain)
    for open_, close in (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'")):
        pattern = rf"\{open_}\s*([^\{close}]*?)\s*\{close}"
        text = re.sub(pattern, rf"{open_}\1{close}", text)
    return text
