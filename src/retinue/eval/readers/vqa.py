"""Readers of VQA's two files and of TextVQA's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from retinue.core.errors import DataError
from retinue.eval.readers.base import Item, Reader, listed, load, once, value


class Vqa(Reader):
    """VQA: a file of questions and one of annotations, joined by question_id.

    picture: a pattern with `{image_id}`. Without annotations the answers are not public.
    """

    kind: Literal["vqa"] = "vqa"
    questions: str
    annotations: str | None = None
    picture: str

    def items(self, folder: Path) -> Iterator[Item]:
        """In the order of the questions. Raises DataError for one without an annotation."""
        return once(self._items(folder))

    def _items(self, folder: Path) -> Iterator[Item]:
        known: dict[Any, Any] = {}
        if self.annotations is not None:
            path = folder / self.annotations
            data = value(load(folder, self.annotations), "annotations", where=str(path))
            known = {row["question_id"]: row for _, row in listed(data, path)}
        path = folder / self.questions
        data = value(load(folder, self.questions), "questions", where=str(path))
        for where, row in listed(data, path):
            number = value(row, "question_id", where=where)
            if self.annotations is not None and number not in known:
                raise DataError(
                    f"question {number} has no annotation",
                    where=where,
                    rule=f"every question stands in {self.annotations}",
                )
            note = known.get(number, {})
            picture = self.picture.format(image_id=value(row, "image_id", where=where))
            yield Item(
                id=str(number),
                fields={"question": str(value(row, "question", where=where))},
                where=where,
                media=(str(folder / picture),),
                references=tuple(str(one["answer"]) for one in note.get("answers", ())),
                facts={key: note[key] for key in ("answer_type", "question_type") if key in note},
            )


class TextVqa(Reader):
    """TextVQA: annotations with ten answers, and the words that an OCR found if named."""

    kind: Literal["textvqa"] = "textvqa"
    annotations: str
    ocr: str | None = None
    picture: str = "train_images/{image_id}.jpg"

    def items(self, folder: Path) -> Iterator[Item]:
        """In the order of the annotations."""
        words: dict[Any, str] = {}
        if self.ocr is not None:
            path = folder / self.ocr
            data = value(load(folder, self.ocr), "data", where=str(path))
            for where, row in listed(data, path):
                found = value(row, "ocr_tokens", where=where)
                words[value(row, "image_id", where=where)] = ", ".join(map(str, found))
        path = folder / self.annotations
        data = value(load(folder, self.annotations), "data", where=str(path))
        for where, row in listed(data, path):
            image = value(row, "image_id", where=where)
            question = str(value(row, "question", where=where))
            asked = f"{image}\n{question.lower()}"
            yield Item(
                id=str(row.get("question_id", asked)),
                fields={"question": question, "ocr": words.get(image, "")},
                where=where,
                media=(str(folder / self.picture.format(image_id=image)),),
                references=tuple(map(str, row.get("answers", ()))),
                aliases=(asked,),
            )
