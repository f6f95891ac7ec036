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
    """id -> text. count: rows read; broken: lines that are no JSON; order: texts as they came.

    numbered: lmms-eval's samples, place -> (what was asked, if they say it, the answer). Kits
    order benchmarks in their own ways, so a place counts only where the same was asked there.
    """

    texts: Mapping[str, str]
    order: Sequence[str]
    count: int
    broken: int
    numbered: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, question: Question, number: int) -> str | None:
        """The answer to a question: by its aliases, its id, or by its place for lmms-eval's."""
        for name in (*question.aliases, question.sample.id):
            if name in self.texts:
                return self.texts[name]
        if str(number) not in self.numbered:
            return None
        there, said = self.numbered[str(number)]
        own = question.sample.messages[-1].text.strip().partition("\n")[0]
        return said if not there or plain(own) in plain(there) else None


def read_predictions(path: Path) -> Predictions:
    """JSONL or a JSON list of {question_id|id|..., text|prediction|...}, or {id: text}.

    Rows with a `prompt` stand under their id and question as well, since some files give all
    questions of a picture one id. lmms-eval's samples {doc_id, input, filtered_resps} are known by
    the ids that stand with them, else by their place. A line that is cut off counts as broken;
    other forms raise DataError.
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
    numbered: dict[str, tuple[str, str]] = {}
    twice: set[str] = set()
    for where, row in rows:
        name, said = one(row, where=where)
        order.append(said)
        if "doc_id" not in row:
            found[name] = said
            if isinstance(row.get("prompt"), str):
                found[f"{name}\n{asked(row['prompt'])}"] = said
            continue
        numbered[name] = (context(row), said)
        held = [one for one in row.values() if isinstance(one, Mapping)]  # its doc, its metrics
        for other in dict.fromkeys(name for one in held for name in names_in(one)):
            if found.setdefault(other, said) != said:
                twice.add(other)
    texts = {name: said for name, said in found.items() if name not in twice}
    return Predictions(texts=texts, order=order, count=len(rows), broken=broken, numbered=numbered)


def context(row: Mapping[str, Any]) -> str:
    """What lmms-eval's sample was asked: its `arguments` or, of older versions, `input`."""
    for given in (row.get("arguments"), row.get("input")):
        while isinstance(given, list) and given:
            given = given[0]
        if isinstance(given, str):
            return given
    doc = row.get("doc")
    return str(doc.get("question", "")) if isinstance(doc, Mapping) else ""


def names_in(doc: Mapping[str, Any]) -> Iterator[str]:
    """The ids in a benchmark's own row, alone and behind its category, as POPE's are here."""
    for key in IDS:
        if isinstance(doc.get(key), str | int):
            yield str(doc[key])
            if isinstance(doc.get("category"), str):
                yield f"{doc['category']}/{doc[key]}"


def plain(text: str) -> str:
    """A text without case and white space."""
    return "".join(text.split()).lower()


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
