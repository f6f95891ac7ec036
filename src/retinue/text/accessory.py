"""LLaMA2-Accessory's label masks and its ways to find a text inside a tokenized one.

Source: Alpha-VLLM/LLaMA2-Accessory (its tokenizer wrapper and conversation dataset).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from retinue.core.errors import DataError
from retinue.text.labels import LabelPolicy, Tokenized, encode
from retinue.text.tokenizer import Tokenizer
from retinue.types import IGNORE, Segment

GUARDS = ("@", "\n", "\\", "=", ">", "`")


def spaced(tokenizer: Tokenizer) -> bool:
    """Whether a word inside a text is tokenized as with a blank before it.

    False for SentencePiece of LLaMA's kind, which puts that blank there itself. Raises DataError
    for vocabularies of neither kind.
    """
    tail = tokenizer.encode("Hi my darling")
    for text, answer in (("my darling", False), (" my darling", True)):
        ids = tokenizer.encode(text)
        if tail[-len(ids) :] == ids:
            return answer
    raise DataError("a vocabulary in which a text's tokens depend on what stands before it")


def segment_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text as they stand after a blank inside a longer one."""
    bare = text.lstrip(" ")
    return tokenizer.encode(" " + bare if spaced(tokenizer) else bare)


def bare_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text as they stand after another character, without a blank of their own.

    Raises DataError where every character tried merges with the text.
    """
    if spaced(tokenizer):
        return tokenizer.encode(text)
    for guard in GUARDS:
        alone, both = tokenizer.encode(guard), tokenizer.encode(guard + text)
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    raise DataError(f"no ids for {text!r} without a blank before it")


def find(part: Sequence[int], whole: Sequence[int], start: int) -> int:
    """First place at or after `start` where `part` stands in `whole`, -1 if nowhere."""
    size = len(part)
    places = range(start, len(whole) - size + 1)
    return next((at for at in places if list(whole[at : at + size]) == list(part)), -1)


class AccessoryDialog(LabelPolicy):
    """Answers with their end mark, each where its ids are first found after the previous one.

    An answer that also stands in an earlier turn of the user is learnt there instead; eos is
    appended and never learnt. Raises DataError for an answer that is not found.
    """

    kind: Literal["accessory"] = "accessory"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        done = encode(segments, tokenizer)
        tokens = [*done.tokens, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]
        labels = [IGNORE] * len(tokens)
        answers = [
            "".join(segment.text for segment in run)
            for trained, run in groupby(segments, key=lambda segment: segment.train)
            if trained
        ]
        at = 0
        for answer in answers:
            ids = segment_ids(answer, tokenizer)
            place = find(ids, tokens, at)
            if place < 0:
                raise DataError(
                    f"the answer {answer[:40]!r} is not found in the conversation's tokens",
                    rule="this label policy searches for it by itself",
                    fix="use labels: assistant",
                )
            at = place + len(ids)
            labels[place:at] = tokens[place:at]
        if not answers:
            raise DataError("no token to learn from", rule="one assistant message must have text")
        return Tokenized(tokens=tokens, labels=labels, places=done.places)


class AccessorySingle(LabelPolicy):
    """All after the prompt, eos included.

    Where the prompt ends is counted on the prompt alone: a token that spans the border of prompt
    and answer moves it by one.
    """

    kind: Literal["accessory-single"] = "accessory-single"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        whole = encode(segments, tokenizer)
        prompt = encode([s for s in segments if not s.train], tokenizer)
        tokens = [*whole.tokens, *([] if tokenizer.eos_id is None else [tokenizer.eos_id])]
        start = len(prompt.tokens)
        labels = [IGNORE] * start + tokens[start:]
        return Tokenized(tokens=tokens, labels=labels[: len(tokens)], places=whole.places)
