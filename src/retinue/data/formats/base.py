"""What every format offers, and the pieces that they share: media sources, error places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from retinue.core.errors import DataError
from retinue.data.formats.records import Records
from retinue.types import Media, Message, Part, Role, Sample, Text

PLACEHOLDER = "<image>"
VIDEO = "<video>"
Kind = Literal["image", "video"]
ARTICLE: dict[Kind, str] = {"image": "an image", "video": "a video"}


class PlaceholderError(DataError):
    """Placeholders and images of a record do not match in number."""


class EmptyAnswerError(DataError):
    """An assistant's turn without text."""


class RefusedError(DataError):
    """A whole sample that its source's own rules leave out: skipped and counted, never an error."""


class Format(Protocol):
    """A file of samples with random access; reading one sample never decodes a picture."""

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Whether the contents of `path` are of this format."""
        ...

    @classmethod
    def open(
        cls, path: str | Path, *, media_root: str | Path | None = None, empty_answers: bool = False
    ) -> Self:
        """Open `path`. Relative media are looked up under media_root (default: beside the file).

        empty_answers: accept answers without text, for runs that repeat an original's labels.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """The index-th sample. Raises DataError with file, line, id, field, rule and fix."""
        ...

    def where(self, index: int) -> str:
        """The place of a record, for messages."""
        ...


class Row:
    """One record under conversion: knows its place, so that every error can name it."""

    def __init__(
        self, data: Mapping[str, Any], *, place: Callable[[], str], root: Path, default_id: str
    ) -> None:
        self.data, self.place, self.root = data, place, root
        found = data.get("id")
        self.id = default_id if found is None else str(found)

    @classmethod
    def of(cls, records: Records, index: int, *, root: Path) -> Row:
        """The index-th record of a file; its line is looked up only for an error."""
        return cls(
            records[index],
            place=lambda: records.where(index),
            root=root,
            default_id=f"{records.path.stem}-{index}",
        )

    def error(
        self, field: str, problem: str, *, rule: str, fix: str, kind: type[DataError] = DataError
    ) -> DataError:
        where = f"{self.place()} (sample {self.id!r})"
        return kind(f"{field}: {problem}", where=where, rule=rule, fix=fix)

    def expect_list(self, value: Any, field: str, *, of: str) -> list[Any]:
        """`value` as a non-empty list, or DataError."""
        if not isinstance(value, list) or not value:
            shown = "missing" if value is None else f"{value!r:.60}"
            raise self.error(
                field, shown, rule=f"a non-empty list of {of}", fix=f"add {field!r} to the record"
            )
        return value

    def media(self, source: Any, field: str, *, budget: Any = None, kind: Kind = "image") -> Media:
        """An image or video named by `source`: a path under the media root, a URL or a data URI.

        A video may also be a list of such names, its frames. budget: its own, else the row's
        `visual_tokens`.
        """
        if isinstance(source, Mapping):
            budget = source.get("visual_tokens") if budget is None else budget
            source = source.get("url") or source.get("path")
        if kind == "video" and isinstance(source, list) and source:
            frames = [self.media(one, f"{field}[{i}]") for i, one in enumerate(source)]
            first = self.media(source[0], field, budget=budget)
            named = tuple(frame.source for frame in frames if isinstance(frame.source, str))
            return replace(first, kind=kind, source=named)
        if not isinstance(source, str) or not source:
            raise self.error(
                field,
                f"{source!r:.60} names no {kind}",
                rule=f"{ARTICLE[kind]} is a path, a URL or a data URI"
                + (", or a list of frames" if kind == "video" else ""),
                fix="write it as a string",
            )
        budget = self.budget(budget, field)
        if source.partition(":")[0] in ("http", "https", "data"):
            return Media(kind=kind, source=source, budget=budget)
        local = source.removeprefix("file://")
        return Media(kind=kind, source=str(self.root / local), name=local, budget=budget)

    def budget(self, own: Any, field: str) -> int | None:
        """Visual tokens per view: a picture's own, else the row's, else None."""
        found = self.data.get("visual_tokens") if own is None else own
        if found is None or (type(found) is int and found > 0):
            return found
        raise self.error(
            "visual_tokens" if own is None else f"{field}: visual_tokens",
            f"{found!r:.60}",
            rule="a positive number of visual tokens per view",
            fix="remove it for the model's default",
        )

    def message(self, role: Role, parts: list[Part], field: str, *, empty: bool) -> Message:
        """A message; an assistant's must say something unless `empty` answers are accepted."""
        message = Message(role=role, parts=tuple(parts))
        if role == "assistant" and not empty and not message.text.strip():
            raise self.error(
                field,
                "the answer is empty",
                rule="an answer needs text to learn from",
                fix="write the answer, or remove the turn and its question",
                kind=EmptyAnswerError,
            )
        return message


class RowFormat(ABC):
    """A file of JSON objects, one per sample: what such formats share. A leaf makes the sample."""

    keys: ClassVar[frozenset[str]]
    """What the first record has in a file of this format."""

    def __init__(self, records: Records, *, root: Path, empty_answers: bool) -> None:
        self.records, self.root, self.empty_answers = records, root, empty_answers

    @classmethod
    def claims(cls, path: Path) -> bool:
        records = Records(path, limit=1)
        return len(records) > 0 and cls.keys <= records[0].keys()

    @classmethod
    def open(
        cls, path: str | Path, *, media_root: str | Path | None = None, empty_answers: bool = False
    ) -> Self:
        root = Path(media_root) if media_root is not None else Path(path).parent
        return cls(Records(path), root=root, empty_answers=empty_answers)

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        return self.records.where(index)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(Row.of(self.records, index, root=self.root))

    @abstractmethod
    def sample(self, row: Row) -> Sample:
        """One record as a sample. Raises DataError with file, line, id, field, rule and fix."""


def split_placeholders(text: str, *, mark: str = PLACEHOLDER) -> list[str]:
    """The texts around the placeholders: one more than there are placeholders."""
    return text.split(mark)


def interleave(texts: list[str], media: list[Media]) -> list[Part]:
    """Text, medium, text, ...: media at the places of the placeholders, empty texts left out."""
    parts: list[Part] = []
    for i, text in enumerate(texts):
        if text:
            parts.append(Text(text=text))
        if i < len(media):
            parts.append(media[i])
    return parts
