"""Readers of AI2D's diagrams and OCR-VQA's book covers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.eval.readers.base import (
    LETTERS,
    Item,
    Reader,
    lettered,
    listed,
    load,
    odd,
    once,
    text_of,
    value,
)


class Ai2d(Reader):
    """AI2D: questions/NAME.json for every images/NAME, and a file with the test pictures' ids."""

    kind: Literal["ai2d"] = "ai2d"
    questions: str = "questions"
    images: str = "images"
    ids: str | None = "ai2d_test_ids.csv"

    def items(self, folder: Path) -> Iterator[Item]:
        """Pictures by name, their questions in order; questions about letters are kept."""
        return once(self._items(folder))

    def _items(self, folder: Path) -> Iterator[Item]:
        kept = None
        if self.ids is not None:
            kept = {line.strip() for line in text_of(folder / self.ids).splitlines()}
        for path in sorted((folder / self.questions).glob("*.json")):
            data = load(path.parent, path.name)
            name = str(value(data, "imageName", where=str(path)))
            if kept is not None and name.partition(".")[0] not in kept:
                continue
            for question, row in value(data, "questions", where=str(path)).items():
                where = f"{path} question {question!r:.60}"
                options = [str(one) for one in value(row, "answerTexts", where=where)]
                yield Item(
                    id=str(value(row, "questionId", where=where)),
                    fields={"question": question, "options": lettered(options)},
                    where=where,
                    media=(str(folder / self.images / name),),
                    references=(LETTERS[int(value(row, "correctAnswer", where=where))],),
                    facts={"letters": "yes" if row.get("abcLabel") else "no"},
                )


class OcrVqa(Reader):
    """OCR-VQA: dataset.json with several questions per cover; split 1 train, 2 val, 3 test."""

    kind: Literal["ocrvqa"] = "ocrvqa"
    file: str = "dataset.json"
    split: int = 3
    images: str = "images"

    def items(self, folder: Path) -> Iterator[Item]:
        """Covers in the file's order, their questions in order."""
        path = folder / self.file
        for where, row in listed(load(folder, self.file), path):
            if value(row, "split", where=where) != self.split:
                continue
            questions = value(row, "questions", where=where)
            answers = value(row, "answers", where=where)
            if len(questions) != len(answers):
                raise odd(where, "as many answers as questions")
            suffix = Path(str(row.get("imageURL", ""))).suffix or ".jpg"
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
                yield Item(
                    id=f"{row['_key']}/{number}",
                    fields={"question": str(question)},
                    where=where,
                    media=(str(folder / self.images / f"{row['_key']}{suffix}"),),
                    references=(str(answer),),
                    facts={"genre": row["genre"]} if row.get("genre") else {},
                )
