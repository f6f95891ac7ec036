"""The label masks of LLaVA's trainer, each with its quirks, as policies.

They read the whole prompt as one string, special tokens in user text included, count the tokens of
its parts anew and drop the sample (all labels ignored) where the counts disagree.
Source: LLaVA 1.5 (Liu et al. 2023), the dialects of its training script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from retinue.core.errors import ConfigError, DataError
from retinue.text.labels import LabelPolicy, Tokenized, chunks
from retinue.text.tokenizer import Tokenizer
from retinue.types import IGNORE, Segment

MARK = "\ufdd0"  # a Unicode noncharacter: stands for a medium inside a prompt string


class _Llava(LabelPolicy):
    """max_length: the trainer's model_max_length; it cuts text-only samples and excuses counts."""

    max_length: int | None = None

    def ids(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Ids of a string: each part between media is a call of its own, one bos is kept."""
        parts = [tokenizer.call(part) for part in text.split(MARK)]
        skip = int(parts[0][:1] == [tokenizer.bos_id])
        out = parts[0][:skip]
        for i, part in enumerate(parts):
            if i:
                out.append(tokenizer.image_id)
            out += part[skip:]
        return out

    def whole(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[str, Tokenized]:
        """The prompt string and its tokens; only a sample without media is cut."""
        for segment in segments:
            if MARK in segment.text:
                raise DataError("the text holds the character U+FDD0", rule="it marks media")
        text = "".join(s.text if s.media is None else MARK for s in segments)
        media = [medium for _, medium in chunks(segments) if medium is not None]
        tokens = (
            self.ids(text, tokenizer) if media else tokenizer.call(text, max_length=self.max_length)
        )
        at = [i for i, id in enumerate(tokens) if id == tokenizer.image_id]
        if len(at) != len(media):
            raise DataError(
                "the text holds the image placeholder itself",
                rule="pictures are media parts of a message, not text",
            )
        places = list(zip(at, media, strict=True))
        return text, Tokenized(tokens=tokens, labels=list(tokens), places=places)

    def finish(self, done: Tokenized, labels: list[int], cut: tuple[int, int] | None) -> Tokenized:
        """Labels with placeholders ignored, or none at all after a mismatch."""
        places = {at for at, _ in done.places}
        if cut is not None:
            labels = [IGNORE] * len(labels)
        kept = [IGNORE if i in places else label for i, label in enumerate(labels)]
        return Tokenized(tokens=done.tokens, labels=kept, places=done.places, mismatch=cut)


class _Rounds(_Llava):
    """The prompt is split into rounds; within each, what comes before the answer is masked.

    sep: text between question and answer; end: text after every answer.
    """

    sep: str
    end: str
    first: ClassVar[int] = 1
    spare: ClassVar[int] = 2

    def rounds(self, text: str) -> list[str]:
        return text.split(self.end)

    def correction(self, tokenizer: Tokenizer) -> int:
        """Added to the counts of every round but the first."""
        return 0

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        text, done = self.whole(segments, tokenizer)
        labels = list(done.labels)
        total = sum(id != _padding(tokenizer) for id in done.tokens)
        at = self.first
        labels[:at] = [IGNORE] * len(labels[:at])
        for i, part in enumerate(self.rounds(text)):
            halves = part.split(self.sep)
            if part == "" or len(halves) != 2:
                break
            length = len(self.ids(part, tokenizer))
            asked = len(self.ids(halves[0] + self.sep, tokenizer)) - self.spare
            if i:
                shift = self.correction(tokenizer)
                length, asked = length + shift, asked + shift
            _mask(labels, at, at + asked)
            at += length
        _mask(labels, at, len(labels))
        checked = self.max_length is None or at < self.max_length
        return self.finish(done, labels, (at, total) if checked and at != total else None)


class LlavaV1(_Rounds):
    """LLaVA's mask for Vicuna's dialect (`--version v1`)."""

    kind: Literal["llava-v1"] = "llava-v1"
    sep: str = " ASSISTANT: "
    end: str = "</s>"

    def correction(self, tokenizer: Tokenizer) -> int:
        if tokenizer.legacy is None:
            raise ConfigError(
                "policy llava-v1 cannot mask a second turn with this tokenizer",
                where=tokenizer.facts.where,
                rule="it depends on the `legacy` flag of the slow LLaMA tokenizer",
                fix="use labels: assistant",
            )
        return 0 if tokenizer.legacy else -1


class LlavaLlama2(_Rounds):
    """LLaVA's mask for LLaMA-2's and Mistral's dialect."""

    kind: Literal["llava-llama2"] = "llava-llama2"
    sep: str = "[/INST] "
    end: str = "</s>"


class LlavaMpt(_Rounds):
    """LLaVA's mask for ChatML (`--version mpt`): it drops nearly every complete sample."""

    kind: Literal["llava-mpt"] = "llava-mpt"
    sep: str = "<|im_end|><|im_start|>assistant\n"
    end: str = "<|im_end|>"
    first: ClassVar[int] = 0
    spare: ClassVar[int] = 1

    def rounds(self, text: str) -> list[str]:
        parts = text.split(self.end)
        bounds = [(0, 3), *((i, i + 2) for i in range(3, len(parts), 2))]
        return [self.end.join(parts[a:b]) for a, b in bounds]

    def correction(self, tokenizer: Tokenizer) -> int:
        return int(bool(tokenizer.legacy))


class LlavaPlain(_Llava):
    """LLaVA's mask for captions (`--version plain`): all that follows the image."""

    kind: Literal["llava-plain"] = "llava-plain"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        text, done = self.whole(segments, tokenizer)
        if MARK not in text:
            raise DataError("no image", rule="a caption sample shows one image")
        head = text[: text.rindex(MARK) + 1]
        labels = list(done.labels)
        _mask(labels, 0, len(self.ids(head, tokenizer)))
        return self.finish(done, labels, None)


class LlavaLegacy(_Llava):
    """LLaVA's oldest mask, for `### Role: text` lines; lengths count a bos each, so it drifts.

    begin: what opens a turn; human: the opening whose turn is masked from its third token on.
    """

    kind: Literal["llava-legacy"] = "llava-legacy"
    begin: str = "### "
    human: str = "### Human: "

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        _, done = self.whole(segments, tokenizer)
        parts: list[str] = [""]
        for segment in segments:
            if (
                segment.media is None
                and not segment.literal
                and segment.text.startswith(self.begin)
            ):
                parts.append("")
            parts[-1] += segment.text if segment.media is None else MARK
        if parts[-1] == self.begin:
            parts.pop()
        labels, at = list(done.labels), 0
        for i, part in enumerate(parts):
            length = self._length(part, tokenizer, cut=not done.places)
            if i == 0:
                _mask(labels, 0, length)
            elif part.startswith(self.human):
                _mask(labels, at + 2, at + length)
            at += length
        return self.finish(done, labels, None)

    def _length(self, part: str, tokenizer: Tokenizer, *, cut: bool) -> int:
        if not cut:
            return len(self.ids(part, tokenizer))
        ids = tokenizer.call(part, max_length=self.max_length)
        return sum(id != _padding(tokenizer) for id in ids)


def _padding(tokenizer: Tokenizer) -> int:
    """What the trainer pads with, whatever the folder says: unk."""
    return tokenizer.pad_id if tokenizer.unk_id is None else tokenizer.unk_id


def _mask(labels: list[int], start: int, stop: int) -> None:
    """Ignore labels[start:stop], slice rules included: a stop below zero counts from the end."""
    for i in range(*slice(start, stop).indices(len(labels))):
        labels[i] = IGNORE
