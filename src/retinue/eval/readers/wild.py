"""Reader of LLaVA-Bench in the wild: open questions for a judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.core.errors import DataError
from retinue.eval.readers.base import Item, Reader, load, records, value

PREFIX = "llava_bench_"


class Wild(Reader):
    """LLaVA-Bench: questions, captions and another model's answers by line, and a judge's rules.

    What the judge is given stands in the item's `row`: context, reference, role, rule.
    """

    kind: Literal["llava-bench"] = "llava-bench"
    questions: str = "questions.jsonl"
    context: str = "context.jsonl"
    answers: str = "answers_gpt4.jsonl"
    rules: str
    images: str = "images"

    def items(self, folder: Path) -> Iterator[Item]:
        """In the order of the questions. Raises DataError for one without caption or answer."""
        captions = {
            str(value(row, "image", where=where)): str(value(row, "caption", where=where))
            for where, row in records(folder, self.context)
        }
        answers = {
            str(value(row, "question_id", where=where)): str(value(row, "text", where=where))
            for where, row in records(folder, self.answers)
        }
        rules = load(folder, self.rules)
        for where, row in records(folder, self.questions):
            number, image = (str(value(row, key, where=where)) for key in ("question_id", "image"))
            category = PREFIX + str(value(row, "category", where=where))
            if number not in answers or image not in captions:
                raise DataError(
                    f"question {number} has no caption or no answer to compare with",
                    where=where,
                    rule=f"both stand in {self.context} and {self.answers}",
                )
            rule = value(rules, category, where=f"{folder / self.rules} (category {category!r})")
            yield Item(
                id=number,
                fields={"question": str(value(row, "text", where=where))},
                where=where,
                media=(str(folder / self.images / image),),
                facts={"category": category},
                row={
                    "question": str(value(row, "text", where=where)),
                    "context": captions[image],
                    "reference": answers[number],
                    "role": str(rule.get("role", "Assistant")),
                    "rule": str(value(rule, "prompt", where=where)),
                },
            )
