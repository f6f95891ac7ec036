"""Instruct-Flamingo's label mask: every piece of a dialogue is tokenized by itself.

Source: ChenDelong1999/instruct_flamingo (its dataset class and training loop).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from retinue.core.errors import ConfigError, DataError
from retinue.text.labels import LabelPolicy, Tokenized
from retinue.text.tokenizer import IMAGE, Tokenizer
from retinue.types import IGNORE, Segment


class FlamingoPieces(LabelPolicy):
    """Prompts and answers as pieces of their own, each with what the tokenizer puts in front.

    A LLaMA vocabulary thus gives every piece a bos. Names of special tokens in a user's text are
    tokens, as there. No target: the first token, `<image>`, and within answers what stands between
    an `<|endofchunk|>` and the next `<image>`.
    """

    kind: Literal["flamingo"] = "flamingo"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        tokens: list[int] = []
        mask: list[bool] = []
        places: list[tuple[int, int]] = []
        eos, end = tokenizer.eos_id, tokenizer.token_text("eos") or ""
        for trained, run in groupby(
            segments, key=lambda segment: segment.train and not segment.media
        ):
            parts = list(run)
            media = [part.media for part in parts if part.media is not None]
            text = "".join(IMAGE if part.media is not None else part.text for part in parts)
            closed = bool(trained and end and text.endswith(end) and eos is not None)
            ids = tokenizer.call(text.removesuffix(end) if closed else text)
            ids += [eos] * closed if eos is not None else []
            marks = [len(tokens) + at for at, id in enumerate(ids) if id == tokenizer.image_id]
            places += zip(marks, media, strict=False)
            tokens += ids
            mask += [bool(trained)] * len(ids)
        return Tokenized(
            tokens=tokens, labels=targets(tokens, mask, tokenizer=tokenizer), places=places
        )


def targets(tokens: Sequence[int], mask: Sequence[bool], *, tokenizer: Tokenizer) -> list[int]:
    """Unshifted labels of ids of which `mask` says whether they belong to an answer."""
    image, chunk = tokenizer.image_id, tokenizer.id_of("<|endofchunk|>")
    pad = tokenizer.pad_id
    labels, silent = [], False
    for at, (token, trained) in enumerate(zip(tokens, mask, strict=True)):
        own = token if trained and at and token != pad else IGNORE
        if own == image:
            silent = False
        labels.append(IGNORE if silent or own == image else own)
        if own == chunk:
            silent = True
    return labels


class FlamingoWeb(LabelPolicy):
    """OpenFlamingo's pre-training: the text as one piece, names of special tokens are tokens.

    Of a caption everything is a target but `<image>`; of a document what stands between a picture
    and the next `<|endofchunk|>`, that included (template `web`).
    """

    kind: Literal["flamingo-web"] = "flamingo-web"

    def tokenize(self, segments: Sequence[Segment], tokenizer: Tokenizer) -> Tokenized:
        media = [segment.media for segment in segments if segment.media is not None]
        ids = tokenizer.call("".join(IMAGE if s.media is not None else s.text for s in segments))
        image, chunk, pad = tokenizer.image_id, tokenizer.id_of("<|endofchunk|>"), tokenizer.pad_id
        if chunk is None:
            raise ConfigError(
                "the tokenizer has no <|endofchunk|>",
                where="labels: flamingo-web",
                rule="it ends what is said of a picture",
                fix="start from an OpenFlamingo checkpoint, or add the token",
            )
        marks = [at for at, id in enumerate(ids) if id == image]
        if len(marks) != len(media):
            raise DataError(
                f"{len(marks)} {IMAGE} for {len(media)} pictures",
                rule=f"the text itself has no {IMAGE}",
                fix="rephrase it, or drop the sample",
            )
        document = not segments[-1].train
        speaking = not document
        labels = []
        for at, id in enumerate(ids):
            speaking |= id == image
            labels.append(id if speaking and at and id not in (image, pad) else IGNORE)
            speaking &= not (document and id == chunk)
        places = list(zip(marks, media, strict=True))
        return Tokenized(tokens=ids, labels=labels, places=places)
