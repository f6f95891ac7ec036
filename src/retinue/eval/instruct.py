"""Predictions over data sets in Instruct-Flamingo's form, kept as its inference script keeps them.

A config names data sets of `input` (pictures between `<img_path>`) and `output`. Results lie in a
folder: `<data set>.json`, a list of {input, output, target, prompt}, and `summary.md`; while a run
is under way `<data set>.jsonl` holds what is answered, and the next run goes on behind it.

Source: ChenDelong1999/instruct_flamingo (`instruction_dataset_inference.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.core.files import writing
from retinue.data.formats.base import interleave
from retinue.data.formats.instruct import TAG
from retinue.decode.rows import RowFile
from retinue.eval.scorers.rouge import rouge_f
from retinue.types import Media, Message, Sample

HEADER = (
    "| Dataset | Avg ROUGE-L |Avg target length | Avg prediction length | Exact matches "
    "| Match percentage | Total samples |\n"
    "|---------|---------- |-----------------|---------------------|---------------"
    "|-----------------|---------------|\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One question: its data set, its text with `<img_path>` tags, the answer, where pictures lie.

    folder: as the config writes it; place: the same folder on this machine.
    """

    dataset: str
    input: str
    output: str
    folder: str = ""
    place: Path = Path()

    @property
    def pictures(self) -> list[Path]:
        return [self.place / path for path in TAG.findall(self.input)]

    @property
    def asked(self) -> Message:
        """The question with its pictures at their places."""
        media = [Media(source=str(path)) for path in self.pictures]
        return Message(role="user", parts=tuple(interleave(TAG.split(self.input)[::2], media)))

    def sample(self, number: int) -> Sample:
        return Sample(id=f"{self.dataset}-{number}", messages=(self.asked,))


Answers = Callable[[Sequence[Record]], Iterator[str]]
"""Texts of some records, in order."""


def is_config(path: Path) -> bool:
    """Whether a JSON file lists data sets instead of records."""
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(rows, list) and bool(rows) and _names(rows[0])


def _names(row: Any) -> bool:
    return isinstance(row, Mapping) and "json_path" in row


def read_config(path: Path) -> list[Record]:
    """All records of a config's data sets, in order; relative paths start at the config's folder.

    Raises DataError for an entry that lacks a field, or a data set that is no list of records.
    """
    records: list[Record] = []
    for number, row in enumerate(_list(path)):
        where = f"{path} entry {number}"
        if not _names(row) or not isinstance(row.get("dataset_name"), str):
            raise DataError(
                "not a data set", where=where, rule="{dataset_name, json_path, img_dir, ratio}"
            )
        folder, file = str(row.get("img_dir") or ""), path.parent / str(row["json_path"])
        for at, entry in enumerate(_list(file)):
            fields = entry if isinstance(entry, Mapping) else {}
            texts = [fields.get("instruction", ""), fields.get("input", ""), fields.get("output")]
            if not all(isinstance(text, str) for text in texts):
                raise DataError(
                    "not a record", where=f"{file} entry {at}", rule="input and output are texts"
                )
            prefix, asked, answer = texts
            records.append(
                Record(
                    dataset=row["dataset_name"],
                    input=prefix + asked,
                    output=answer,
                    folder=folder,
                    place=path.parent / folder,
                )
            )
    return records


def _list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("no readable JSON", where=str(path), rule=str(error)[:80]) from None
    if not isinstance(rows, list) or not rows:
        raise DataError("no list of records", where=str(path), rule="a JSON list of objects")
    return rows


def predict(
    records: Sequence[Record],
    answers: Answers,
    folder: Path,
    *,
    prompt: Callable[[Record], str],
    restart: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[dict[str, str]]]:
    """Answer what is not answered yet; writes and returns the results of every data set.

    prompt(record): the rendered prompt, for the results. Raises DataError where the folder holds
    answers to other records.
    """
    results: dict[str, list[dict[str, str]]] = {}
    done = count(1)
    for name in dict.fromkeys(record.dataset for record in records):
        own = [record for record in records if record.dataset == name]
        file = RowFile(folder / f"{name}.jsonl", restart=restart)
        ids = [f"{number}: {record.input}" for number, record in enumerate(own)]
        first = file.settled(ids)
        rows = list(file.rows)
        for id, record, text in zip(ids[first:], own[first:], answers(own[first:]), strict=True):
            rows.append(
                {
                    "id": id,
                    "input": with_folder(record.input, record.folder),
                    "output": text,
                    "target": record.output,
                    "prompt": prompt(record).replace("<|endofchunk|>", ""),
                }
            )
            file.append(rows[-1])
            if progress is not None:
                progress(next(done))
        results[name] = [{k: v for k, v in row.items() if k != "id"} for row in rows]
        place = folder / f"{name}.json"
        with writing(place):
            place.write_text(json.dumps(results[name], indent=4), "utf-8")
    with writing(folder / "summary.md"):
        (folder / "summary.md").write_text(summary(results), "utf-8")
    return results


def with_folder(text: str, folder: str) -> str:
    """The text with `folder/` put before the path inside every pair of tags."""
    if not folder:
        return text
    return TAG.sub(lambda found: f"<img_path>{folder}/{found[1]}<img_path>", text)


def summary(results: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """The table: ROUGE-L, lengths in words, exact matches of every data set."""
    lines = [HEADER]
    for name, rows in results.items():
        total = len(rows)
        rouge = sum(rouge_f(row["output"], row["target"]) for row in rows) / total
        target = sum(len(row["target"].split()) for row in rows) / total
        said = sum(len(row["output"].split()) for row in rows) / total
        same = sum(row["output"] == row["target"] for row in rows)
        lines.append(
            f"| {name} | {rouge:.2f} | {target:.2f} | {said:.2f} | {same} "
            f"| {100 * same / total:.2f}% | {total} |\n"
        )
    return "".join(lines)


def results_folder(root: Path, *, checkpoints: str, data: str, number: int) -> Path:
    """The original's: named after the last of its comma-separated checkpoints, and the data."""
    parent, _, file = checkpoints.rpartition("/")
    model = f"{parent.rpartition('/')[2]}-{file.replace('.pt', '')}"
    return root / model / f"{Path(data).name.replace('.json', '')}_{number}"
