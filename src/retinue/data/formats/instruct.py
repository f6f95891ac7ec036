"""Instruct-Flamingo's data JSON: `input` with `<img_path>` around pictures' paths, and `output`."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from retinue.data.formats.base import Row, RowFormat, interleave
from retinue.types import Sample

TAG = re.compile(r"<img_path>(.*?)<img_path>")
KNOWN = {"id", "instruction", "input", "output", "visual_tokens"}


class Instruct(RowFormat):
    """A JSON list (or JSONL) of `input` and `output`; an older `instruction` precedes the input.

    The text between two `<img_path>` is a picture's path and becomes a picture at its place.
    Source: the data documentation of ChenDelong1999/instruct_flamingo.
    """

    keys: ClassVar[frozenset[str]] = frozenset({"input", "output"})

    def sample(self, row: Row) -> Sample:
        question = self._text(row, "instruction", "") + self._text(row, "input")
        pieces = TAG.split(question)
        media = [row.media(path, "input") for path in pieces[1::2]]
        asked = row.message("user", interleave(pieces[::2], media), "input", empty=True)
        answer = interleave([self._text(row, "output")], [])
        told = row.message("assistant", answer, "output", empty=self.empty_answers)
        meta = {key: value for key, value in row.data.items() if key not in KNOWN}
        return Sample(id=row.id, messages=(asked, told), meta=meta)

    def _text(self, row: Row, field: str, default: str | None = None) -> str:
        found: Any = row.data.get(field, default)
        if not isinstance(found, str):
            raise row.error(
                field, f"{found!r:.60}", rule="text", fix=f"write {field!r} as one string"
            )
        return found
