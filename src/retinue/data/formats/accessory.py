"""LLaMA2-Accessory's data_config.yaml: several files with a type each, sorted by length within it.

Source: Alpha-VLLM/LLaMA2-Accessory (its conversation and single-turn datasets).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from retinue.core.errors import DataError
from retinue.core.yamlio import load_yaml
from retinue.data.formats.base import PLACEHOLDER, Row
from retinue.data.formats.records import Records
from retinue.text.single_turn import single_prompt
from retinue.types import Media, Message, Part, Role, Sample, Text

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "assistant": "assistant"}
PREPROCESS = (None, "single_turn_llava", "caption")
KNOWN = ("path", "type", "root", "ratio", "preprocess", "prompt_type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of META; root: folder of its pictures."""

    path: Path
    type: str
    root: Path
    ratio: float
    preprocess: str | None
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record by its place: file, number, and the measure it is sorted by."""

    entry: Entry
    data: Mapping[str, Any]
    place: str
    length: int


class Accessory:
    """META entries {path, type, root, ratio, preprocess, prompt_type}, type by type, short first.

    Dialogs have `conversations`; single turns `instruction`, `input`, `output` (prompt_type names
    their prompt) or what `preprocess` makes such. A ratio takes the original's very records.
    Relative paths start at the YAML file. `types` has the type of every sample, `files` what was
    read.
    """

    def __init__(self, path: Path, records: list[Record], *, empty_answers: bool) -> None:
        self.path, self.records, self.empty_answers = path, records, empty_answers
        self.types = [record.entry.type for record in records]
        self.files = sorted({record.entry.path for record in records})

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.suffix in (".yaml", ".yml") and "META" in (load_yaml(path)[0] or {})

    @classmethod
    def open(
        cls, path: str | Path, *, media_root: str | Path | None = None, empty_answers: bool = False
    ) -> Self:
        """Raises DataError for unknown keys, missing files and unreadable records."""
        file = Path(path)
        groups: dict[str, list[Record]] = {}
        for entry in entries(file, media_root=media_root):
            groups.setdefault(entry.type, []).extend(read_entry(entry))
        ordered = [r for group in groups.values() for r in sorted(group, key=lambda r: r.length)]
        return cls(file, ordered, empty_answers=empty_answers)

    def __len__(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        return self.records[index].place

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        row = Row(
            record.data,
            place=lambda: record.place,
            root=record.entry.root,
            default_id=f"{record.entry.path.stem}-{index}",
        )
        meta = {"type": record.entry.type}
        messages = self._single(row, record) if is_single(record) else self._dialog(row)
        return Sample(id=row.id, messages=tuple(messages), meta=meta)

    def _dialog(self, row: Row) -> list[Message]:
        messages: list[Message] = []
        turns = row.expect_list(row.data.get("conversations"), "conversations", of="{from, value}")
        for number, turn in enumerate(turns):
            role = ROLES.get(str(turn.get("from", "")).lower())
            if role is None:
                raise row.error(
                    f"conversations[{number}].from",
                    f"unknown role {turn.get('from')!r:.40}",
                    rule="roles are human, gpt and assistant",
                    fix="rename the role",
                )
            text = str(turn.get("value", "")).replace(PLACEHOLDER, "").strip()
            parts: list[Part] = [*_media(row)] if number == 0 else []
            parts.append(Text(text=text))
            field = f"conversations[{number}].value"
            messages.append(row.message(role, parts, field, empty=self.empty_answers))
        if all(message.role != "assistant" for message in messages):
            raise row.error(
                "conversations", "no answer", rule="a sample has something to learn", fix="drop it"
            )
        return messages

    def _single(self, row: Row, record: Record) -> list[Message]:
        fields = single_fields(record.entry, record.data)
        prompt = prompt_of(record.entry, fields)
        source = fields.get("image")
        parts: list[Part] = [] if source is None else [row.media(source, "image")]
        asked = Message(role="user", parts=(*parts, Text(text=prompt)))
        answer: list[Part] = [Text(text=str(fields["output"]))]
        return [asked, row.message("assistant", answer, "output", empty=self.empty_answers)]


def _media(row: Row) -> list[Media]:
    found = row.data.get("image")
    return [] if found is None else [row.media(found, "image")]


def entries(file: Path, *, media_root: str | Path | None = None) -> list[Entry]:
    """The entries of a data_config.yaml. Raises DataError for one that is malformed."""
    found = (load_yaml(file)[0] or {}).get("META")
    if not isinstance(found, list) or not found:
        raise DataError("no META", where=str(file), rule="META is a list of {path, type, ...}")
    made = []
    for number, data in enumerate(found):
        odd = sorted(set(data) - set(KNOWN)) if isinstance(data, Mapping) else ["?"]
        if odd or "path" not in data or data.get("preprocess") not in PREPROCESS:
            raise DataError(
                f"META[{number}] has {', '.join(odd) or data.get('preprocess') or 'no path'}",
                where=str(file),
                rule=f"keys are {', '.join(KNOWN)}",
            )
        root = data.get("root") if media_root is None else media_root
        made.append(
            Entry(
                path=file.parent / str(data["path"]),
                type=str(data.get("type", "text")),
                root=file.parent / str(root or "."),
                ratio=float(data.get("ratio", 1.0)),
                preprocess=data.get("preprocess"),
                prompt=str(data.get("prompt_type", "alpaca")),
            )
        )
    return made


def read_entry(entry: Entry) -> list[Record]:
    """The records of one file, as many and as drawn as its ratio says, with their lengths."""
    if entry.path.suffix == ".csv":
        with entry.path.open(encoding="utf-8", newline="") as stream:
            rows: list[Mapping[str, Any]] = list(csv.DictReader(stream, delimiter="\t"))
        places = [f"{entry.path}:{number + 2}" for number in range(len(rows))]
    else:
        records = Records(entry.path)
        rows = [records[number] for number in range(len(records))]
        places = [records.where(number) for number in range(len(records))]
    pairs = list(zip(rows, places, strict=True))
    if entry.ratio != 1.0:
        pairs = random.Random(0).sample(pairs, int(len(pairs) * entry.ratio))
    return [
        Record(entry=entry, data=data, place=place, length=measure(entry, data))
        for data, place in pairs
    ]


def is_single(record: Record) -> bool:
    """Whether a record is one question and its answer, not a dialog."""
    return record.entry.preprocess is not None or "conversations" not in record.data


def measure(entry: Entry, data: Mapping[str, Any]) -> int:
    """Characters of a record, by which it is sorted."""
    if entry.preprocess is None and "conversations" in data:
        return sum(len(str(turn.get("value", ""))) for turn in data["conversations"])
    fields = single_fields(entry, data)
    return len(prompt_of(entry, fields)) + len(str(fields.get("output", "")))


def single_fields(entry: Entry, data: Mapping[str, Any]) -> dict[str, Any]:
    """instruction, input, output, image of a single turn, after `preprocess`."""
    if entry.preprocess == "caption":
        text = data["caption"]
        if isinstance(text, list):  # always the same of several, where the original draws anew
            text = random.Random(str(data.get("url"))).choice(text)
        return {"instruction": None, "output": text, "image": data["url"]}
    if entry.preprocess == "single_turn_llava":
        asked, answer = (str(turn["value"]) for turn in data["conversations"][:2])
        asked = asked.replace(PLACEHOLDER, "").strip()
        return {"instruction": asked, "output": answer, "image": data["image"]}
    return {key: data.get(key) for key in ("instruction", "input", "output", "image")}


def prompt_of(entry: Entry, fields: Mapping[str, Any]) -> str:
    """The prompt of a single turn."""
    return single_prompt(
        entry.prompt, instruction=fields.get("instruction"), input=fields.get("input")
    )
