"""Web documents and pictures with captions, in tar shards or JSONL, as OpenFlamingo trains on them.

Source: the pre-training loaders of mlfoundations/open_flamingo (arXiv 2308.01390); documents are
MMC4's (arXiv 2304.06939).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, Self

from pydantic import Field

from retinue.core.errors import DataError
from retinue.core.seed import stream_seed
from retinue.core.spec import Spec
from retinue.data.formats.base import RefusedError
from retinue.data.formats.records import Records
from retinue.data.tar import Parts, expand, scan
from retinue.data.web import CHUNK, IMAGE, is_pair, told_document, web_document
from retinue.types import Media, Message, Part, Sample, Text

PICTURES = ("png", "jpg", "jpeg")
PAIRS = (*PICTURES, "txt")


class WebSpec(Spec):
    """What is taken of a document.

    threshold: least similarity of a picture and the sentence that it goes before; most, fewest:
    pictures of a document; min_bytes: smaller pictures are left out; single: the share of
    documents with one picture that stay.
    """

    threshold: float = 0.24
    most: int = Field(default=6, ge=1)
    fewest: int = Field(default=1, ge=1)
    min_bytes: int = Field(default=11000, ge=0)
    single: float = Field(default=0.5, ge=0, le=1)
    seed: int = 0


class Shards:
    """Samples of tar shards (`txt` with a picture, or a document's `json`) or of documents' JSONL.

    path: a file, a folder, or a pattern (`{00000..00041}.tar`). A pair is a question that is only
    a picture, and its caption; a document is one message with pictures between its sentences.
    What has no picture that fits is refused, what is damaged is an error or skipped as any sample.
    """

    def __init__(self, files: list[Path], *, root: Path, web: WebSpec) -> None:
        self.files, self.root, self.web = files, root, web
        self.samples: list[Parts | tuple[Records, int]] = []
        for file in files:
            if file.suffix == ".tar":
                self.samples += scan(file)
            else:
                rows = Records(file)
                self.samples += [(rows, index) for index in range(len(rows))]

    @classmethod
    def claims(cls, path: Path) -> bool:
        if not path.is_file() or path.suffix == ".tar":
            return True
        records = Records(path, limit=1)
        return len(records) > 0 and is_document(records[0])

    @classmethod
    def open(
        cls, path: str | Path, *, media_root: str | Path | None = None, empty_answers: bool = False
    ) -> Self:
        """Raises DataError for missing files and for files that are no tar."""
        files = expand(path)
        root = Path(media_root) if media_root is not None else files[0].parent
        return cls(files, root=root, web=WebSpec())

    def using(self, web: WebSpec) -> Shards:
        """The same shards, read by other rules."""
        made = object.__new__(type(self))
        made.files, made.root, made.web, made.samples = self.files, self.root, web, self.samples
        return made

    def __len__(self) -> int:
        return len(self.samples)

    def where(self, index: int) -> str:
        found = self.samples[index]
        if isinstance(found, Parts):
            return f"{found.shard}: {found.key}"
        return found[0].where(found[1])

    def __getitem__(self, index: int) -> Sample:
        found = self.samples[index]
        if isinstance(found, tuple):
            rows, number = found
            return self._document(rows[number], index, id=f"{rows.path.stem}-{number}")
        if found.damage is not None:
            raise DataError(
                f"a damaged shard: {found.damage}",
                where=self.where(index),
                rule="every member has a header and all of its bytes",
                fix="fetch the shard again, or set on_error to skip",
            )
        if "json" in found.parts and not is_pair(found.parts):
            return self._document(self._json(found, index), index, id=found.key)
        if not is_pair(found.parts):
            raise DataError(
                f"has {', '.join(sorted(found.parts))}",
                where=self.where(index),
                rule=f"a sample is a document's json, or txt with one of {', '.join(PICTURES)}",
                fix="write the shard again, or set on_error to skip",
            )
        picture = next(name for name in PICTURES if name in found.parts)
        try:
            caption = found.read("txt").decode("utf-8").strip()
        except UnicodeDecodeError:
            raise DataError("the caption is not UTF-8", where=self.where(index)) from None
        medium = Media(source=found.read(picture), name=f"{found.shard.name}/{found.key}.{picture}")
        asked = Message(role="user", parts=(medium,))
        told = Message(role="assistant", parts=(Text(text=caption),) if caption else ())
        return Sample(id=found.key, messages=(asked, told))

    def _json(self, found: Parts, index: int) -> Mapping[str, Any]:
        try:
            row = json.loads(found.read("json"))
        except ValueError as error:
            raise DataError("broken JSON", where=self.where(index), rule=str(error)) from None
        if not isinstance(row, dict):
            raise DataError("no JSON object", where=self.where(index))
        return row

    def _document(self, row: Mapping[str, Any], index: int, *, id: str) -> Sample:
        web = self.web
        try:
            if row.get("is_gpt"):
                found = told_document(row, most=web.most, eos="", lossy=False)
            else:
                found = web_document(
                    row,
                    threshold=web.threshold,
                    most=web.most,
                    eos="",
                    min_bytes=web.min_bytes,
                    folder=self.root,
                )
        except RefusedError as error:
            raise RefusedError(error.what, where=self.where(index), rule=error.rule) from None
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            raise DataError(
                f"no document: {type(error).__name__} {error}",
                where=self.where(index),
                rule="text_list, image_info and similarity_matrix, as MMC4 has them",
                fix="mend the record, or set on_error to skip",
            ) from None
        texts = found.text.replace(CHUNK + CHUNK, CHUNK).removesuffix(CHUNK).split(IMAGE)
        if len(texts) != len(found.images) + 1:
            raise DataError(
                f"{len(texts) - 1} {IMAGE} for {len(found.images)} pictures",
                where=self.where(index),
                rule=f"a document's own text has no {IMAGE}",
            )
        self._fits(texts, index)
        parts: list[Part] = []
        for number, text in enumerate(texts):
            text = text.removesuffix(CHUNK)
            parts += [Text(text=text)] if text else []
            if number < len(found.images):
                parts.append(Media(source=found.images[number], name=f"{id}-{number}"))
        return Sample(id=id, messages=(Message(role="assistant", parts=tuple(parts)),))

    def _fits(self, texts: list[str], index: int) -> None:
        """Refuses a document by its number of pictures, as a pure function of seed and place."""
        count = len(texts) - 1
        why = None
        if count < self.web.fewest:
            why = f"{count} pictures, at least {self.web.fewest} are wanted"
        elif count == 1:
            coin = Random(stream_seed(self.web.seed, "web", index)).random()
            if coin >= self.web.single:
                why = f"one picture only, of which {self.web.single:g} stay"
            elif not texts[1].strip():
                why = "nothing is said after its only picture"
        if why is not None:
            raise RefusedError(why, where=self.where(index))


def is_document(row: Mapping[str, Any]) -> bool:
    """Whether a record is a web document, MMC4's or a generated one."""
    return {"text_list", "image_info"} <= row.keys() or bool(row.get("is_gpt"))
