"""Segments -> tokens and labels, by a named policy.

The default policy reads the mask off character offsets: a token is a target if it holds a
character of a trained segment. Policies that reproduce an original's mask are leaves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from retinue.core.errors import DataError
from retinue.core.registry import Registry
from retinue.core.spec import Spec
from retinue.text.tokenizer import IMAGE, Tokenizer
from retinue.types import IGNORE, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """Ids with unshifted labels (IGNORE: no target).

    places: (index in tokens, number of the medium) of every placeholder, one id each.
    mismatch: an original's (counted, real) lengths where its mask failed and dropped the sample.
    """

    tokens: list[int]
    labels: list[int]
    places: list[tuple[int, int]] = field(default_factory=list)
    mismatch: tuple[int, int] | None = None

    @property
    def supervised(self) -> list[int]:
        """Positions that have a target."""
        return [i for i, label in enumerate(self.labels) if label != IGNORE]

    def cut(self, length: int) -> Tokenized:
        """The first `length` ids, one id per medium: LLaVA's collator cuts here, unexpanded."""
        return replace(
            self,
            tokens=self.tokens[:length],
            labels=self.labels[:length],
            places=[place for place in self.places if place[0] < length],
        )


class LabelPolicy(Spec):
    """Which tokens of a rendered conversation are targets."""

    @abstractmethod
    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        """Tokens and labels. Raises DataError for a conversation the policy cannot read."""


class Assistant(LabelPolicy):
    """Every trained turn with its end mark, nothing else; a sample without a target is refused."""

    kind: Literal["assistant"] = "assistant"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        done = encode(segments, tokenizer)
        if all(label == IGNORE for label in done.labels[1:]):
            raise DataError(
                "no token to learn from",
                rule="at least one assistant message must have text",
                fix="complete or drop the sample",
            )
        return done


class Prompt(LabelPolicy):
    """No labels: for inference."""

    kind: Literal["prompt"] = "prompt"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        done = encode(segments, tokenizer)
        return Tokenized(tokens=done.tokens, labels=[IGNORE] * len(done.tokens), places=done.places)


LABELS: Registry[type[LabelPolicy]] = Registry(
    "label",
    {
        "assistant": "retinue.text.labels:Assistant",
        "prompt": "retinue.text.labels:Prompt",
        "accessory": "retinue.text.accessory:AccessoryDialog",
        "accessory-single": "retinue.text.accessory:AccessorySingle",
        "llava-v1": "retinue.text.llava:LlavaV1",
        "llava-llama2": "retinue.text.llava:LlavaLlama2",
        "llava-mpt": "retinue.text.llava:LlavaMpt",
        "llava-plain": "retinue.text.llava:LlavaPlain",
        "llava-legacy": "retinue.text.llava:LlavaLegacy",
        "flamingo": "retinue.text.flamingo:FlamingoPieces",
        "flamingo-web": "retinue.text.flamingo:FlamingoWeb",
    },
)


def resolve_policy(policy: LabelPolicy | str | Mapping[str, Any]) -> LabelPolicy:
    """A policy by name, or `{kind: ..., field: value}`. Raises ConfigError for unknown ones."""
    if isinstance(policy, LabelPolicy):
        return policy
    data = {"kind": policy} if isinstance(policy, str) else dict(policy)
    return LABELS.get(str(data.get("kind", ""))).parse(data, where="labels")


def tokenize(
    segments: Sequence[Segment],
    tokenizer: Tokenizer,
    *,
    policy: LabelPolicy | str | Mapping[str, Any] = "assistant",
    where: str | None = None,
) -> Tokenized:
    """Tokens and labels of a rendered conversation; `where` names the sample in errors.

    The text between media is tokenized as a whole, one bos stands in front if the tokenizer adds
    one, each medium is one `image_id`. Raises DataError as the policy says.
    """
    try:
        return resolve_policy(policy).tokenize(segments, tokenizer)
    except DataError as error:
        if where is None or error.where is not None:
            raise
        raise DataError(error.what, where=where, rule=error.rule, fix=error.fix) from None


def chunks(segments: Sequence[Segment]) -> Iterator[tuple[list[Segment], int | None]]:
    """Runs of text segments, each with the medium that follows it (None after the last)."""
    run: list[Segment] = []
    for segment in segments:
        if segment.media is None:
            run.append(segment)
        else:
            yield run, segment.media
            run = []
    yield run, None


def runs(segments: Sequence[Segment], *, whole: bool) -> Iterator[tuple[list[Segment], list[int]]]:
    """Texts to tokenize at once, each with its media: what follows it, or, if `whole`, inside it.

    Whole texts hold `<image>` for each medium, as transformers' processors tokenize them.
    """
    if not whole:
        for run, medium in chunks(segments):
            yield run, [] if medium is None else [medium]
        return
    marked = [s if s.media is None else Segment(text=IMAGE) for s in segments]
    yield marked, [s.media for s in segments if s.media is not None]


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
    """Tokens of segments, labels by character offsets; special tokens only from the template."""
    tokens: list[int] = []
    labels: list[int] = []
    places: list[tuple[int, int]] = []
    for run, media in runs(segments, whole=tokenizer.image_in_text):
        text = "".join(segment.text for segment in run)
        trained, literal, at = bytearray(), [], 0
        for segment in run:
            end = at + len(segment.text)
            trained += bytes([segment.train]) * len(segment.text)
            if segment.literal and end > at:
                literal.append((at, end))
            at = end
        ids, spans = tokenizer.encode_with_offsets(text, specials=True, literal=literal)
        for id, (start, stop) in zip(ids, spans, strict=True):
            hit = any(trained[start : max(stop, start + 1)])
            if media and tokenizer.image_in_text and id == tokenizer.image_id:
                places.append((len(tokens), media.pop(0)))
            tokens.append(id)
            labels.append(id if hit else IGNORE)
        for medium in media:
            places.append((len(tokens), medium))
            tokens.append(tokenizer.image_id)
            labels.append(IGNORE)
    if tokenizer.adds_bos and tokens[:1] != [tokenizer.bos_id]:
        tokens.insert(0, tokenizer.bos_id or 0)
        labels.insert(0, IGNORE)
        places = [(at + 1, medium) for at, medium in places]
    if tokens.count(tokenizer.image_id) != len(places):
        raise DataError(
            "the text holds the image placeholder itself",
            rule="pictures are media parts of a message, not text",
        )
    return Tokenized(tokens=tokens, labels=labels, places=places)
