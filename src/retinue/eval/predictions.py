"""Answers that were saved before, by us or by another kit, in the place of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.eval.questions import Question

IDS = ("question_id", "questionId", "id", "image", "index")
TEXTS = ("text", "prediction", "answer", "output", "response", "filtered_resps", "resps")
_OCR = re.compile(r"OCR tokens: .*?\. Question: (.*?) Short answer:", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A saved answer as the runner takes it."""

    text: str
    number: int
    tokens: list[int] = field(default_factory=list)
    finish: str = "saved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """id -> text. count: rows read; broken: lines that are no JSON; order: texts as they came."""

    texts: Mapping[str, str]
    order: Sequence[str]
    count: int
    broken: int
    numbered: bool

    def of(self, question: Question, number: int) -> str | None:
        """The answer to a question: by its aliases, its id, or by its place for lmms-eval's."""
        for name in (*question.aliases, question.sample.id):
            if name in self.texts:
                return self.texts[name]
        if self.numbered:
            return self.texts.get(str(number))
        return None


def read_predictions(path: Path) -> Predictions:
    """JSONL or a JSON list of {question_id|id|..., text|prediction|...}, or {id: text}.

    Rows with a `prompt` stand under their id and question as well, since some files give all
    questions of a picture one id. lmms-eval's samples {doc_id, filtered_resps} are known by the
    number of the question. A line that is cut off counts as broken; other forms raise DataError.
    """
    broken, rows = 0, []
    text = path.read_text("utf-8")
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if isinstance(data, Mapping) and not any(key in data for key in (*IDS, "doc_id")):
        rows = [(f"{path} {key!r}", {"id": key, "text": value}) for key, value in data.items()]
    elif data is not None:
        listed = data if isinstance(data, list) else [data]
        rows = [(f"{path} row {number}", row) for number, row in enumerate(listed)]
    else:
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except ValueError:
                broken += bool(line.strip())
    found: dict[str, str] = {}
    order = []
    numbered = False
    for where, row in rows:
        numbered = numbered or (isinstance(row, Mapping) and "doc_id" in row)
        name, said = one(row, where=where)
        order.append(said)
        found[name] = said
        if isinstance(row.get("prompt"), str):
            found[f"{name}\n{asked(row['prompt'])}"] = said
    return Predictions(texts=found, order=order, count=len(rows), broken=broken, numbered=numbered)


def one(row: Any, *, where: str) -> tuple[str, str]:
    """(id, text) of a row. Raises DataError for one that has neither."""
    if isinstance(row, Mapping):
        name = next((row[key] for key in ("doc_id", *IDS) if key in row), None)
        said = next((row[key] for key in TEXTS if key in row), None)
        while isinstance(said, list) and said:
            said = said[0]
        if name is not None and isinstance(said, str):
            return str(name), said
    raise DataError(
        "not a saved answer",
        where=where,
        rule=f"an object with one of {', '.join(IDS)} and one of {', '.join(TEXTS)}",
    )


def asked(prompt: str) -> str:
    """The question inside a prompt of LLaVA's scripts, in lower case.

    OCR words may stand before it or after it; the last line says how to answer.
    """
    if prompt.startswith("OCR tokens: "):
        found = _OCR.search(prompt)
        return (found[1] if found else prompt).lower()
    lines = prompt.split("\n")
    if lines[0].startswith("Reference OCR token: ") and len(lines) > 1:
        return lines[1].lower()
    return lines[0].lower()


def from_saved(
    saved: Predictions,
    questions: Sequence[Question],
    missing: Callable[[int], None],
    *,
    first: int = 0,
) -> Callable[[Iterable[Any]], Iterator[Saved]]:
    """A backend for the runner that is asked questions[first:].

    missing(number): called for a question without an answer; numbers count from `first`.
    """

    def predict(samples: Iterable[Any]) -> Iterator[Saved]:
        for number, _ in enumerate(samples):
            text = saved.of(questions[first + number], first + number)
            if text is None:
                missing(number)
            else:
                yield Saved(text=text, number=number)

    return predict


def chunks(count: int, parts: int) -> list[range]:
    """Numbers 0 to count - 1 in runs of equal length, the last one shorter.

    As LLaVA's scripts divide work: there may be fewer runs than `parts`.
    """
    size = -(-count // parts)
    return [range(start, min(start + size, count)) for start in range(0, count, size or 1)]
