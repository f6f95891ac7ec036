"""Rows of an evaluation: a conversation, what counts as right, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retinue.core.errors import ConfigError, DataError
from retinue.data.formats import Format, open_format
from retinue.eval.scorers import SCORERS
from retinue.types import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row. references: answers that each count as right; where: its place in the file.

    facts: what figures are broken down by. aliases: other ids that a saved answer may have. row:
    the benchmark's own fields. A benchmark whose answers are not public has no references.
    """

    sample: Sample
    references: tuple[str, ...]
    task: str
    scorer: str
    where: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)


def read_questions(
    path: str | Path,
    *,
    scorer: str | None = None,
    media_root: str | Path | None = None,
    limit: int | None = None,
) -> list[Question]:
    """The questions of a data file (chat rows or LLaVA's), in order.

    What counts as right is the row's `references`, else its `answer`, else its last message if the
    assistant speaks it. `task` groups rows (default: the file's name). The scorer is `scorer`, else
    the row's own. Raises ConfigError for an unknown scorer, DataError naming the line of a row that
    lacks a question, a reference or a scorer.
    """
    if scorer is not None:
        SCORERS.get(scorer)
    path = Path(path)
    data = open_rows(path, media_root=media_root)
    count = len(data) if limit is None else min(limit, len(data))
    return [question(data, index, scorer=scorer, task=path.stem) for index in range(count)]


def open_rows(path: Path, *, media_root: str | Path | None = None) -> Format:
    """A data file in LLaVA's format where it is that, else as chat rows; errors name lines."""
    from retinue.data.formats.llava import Llava

    kind = "llava" if path.is_file() and Llava.claims(path) else "chat"
    return open_format(path, format=kind, media_root=media_root)


def question(data: Format, index: int, *, scorer: str | None, task: str) -> Question:
    """The index-th row of a file as a Question."""
    sample = data[index]
    where = f"{data.where(index)} (sample {sample.id!r})"
    messages = sample.messages
    references = given(sample.meta)
    if messages and messages[-1].role == "assistant":
        references = references or (messages[-1].text.strip(),)
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise DataError("no question", where=where, rule="the last word is the user's")
    if not references:
        raise DataError(
            "nothing says what is right",
            where=where,
            rule="a row has 'references' (a list), 'answer', or an assistant's message at its end",
            fix="add one of them",
        )
    name = scorer or sample.meta.get("scorer")
    if name is None:
        raise DataError(
            "no scorer",
            where=where,
            rule="a row names its 'scorer', or the command line one for all",
            fix=f"--scorer NAME, one of {', '.join(SCORERS)}",
        )
    if name not in SCORERS:
        raise DataError(SCORERS.unknown(str(name)), where=where)
    return Question(
        sample=replace(sample, messages=messages),
        references=references,
        task=str(sample.meta.get("task") or task),
        scorer=str(name),
        where=where,
    )


def given(meta: Any) -> tuple[str, ...]:
    """The references of a row's own fields; numbers and truth values become their names."""
    found = meta.get("references")
    if found is None:
        found = meta.get("answer")
    if found is None:
        return ()
    values = found if isinstance(found, list) else [found]
    return tuple(str(value) for value in values)


def check_references(questions: list[Question]) -> None:
    """Try every scorer on its references before a model spends time. Raises DataError."""
    for item in questions:
        if not item.references:
            continue
        try:
            SCORERS.get(item.scorer)(item.references[0], item.references)
        except (DataError, ConfigError) as error:
            raise DataError(error.what, where=item.where, rule=error.rule, fix=error.fix) from None


def samples_of(questions: list[Question]) -> Iterator[Sample]:
    """Only what a model is asked."""
    return (item.sample for item in questions)
