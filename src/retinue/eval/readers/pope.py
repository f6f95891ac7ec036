"""Reader of POPE: yes-or-no questions about objects, three ways of choosing absent ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.core.errors import DataError
from retinue.eval.readers.base import Item, Reader, Row, odd, once, records, value

PREFIX = "coco_pope_"


class Pope(Reader):
    """POPE: coco_pope_CATEGORY.json with labels; ids may come from LLaVA's file of questions.

    With `questions`, the n-th question of a category has the n-th label of its file.
    """

    kind: Literal["pope"] = "pope"
    labels: str = "coco"
    questions: str | None = None
    images: str = "val2014"

    def items(self, folder: Path) -> Iterator[Item]:
        """Category after category, or in the order of `questions`."""
        return once(self._items(folder))

    def _items(self, folder: Path) -> Iterator[Item]:
        labels = {
            path.stem.removeprefix(PREFIX): list(records(path.parent, path.name))
            for path in sorted((folder / self.labels).glob(f"{PREFIX}*.json"))
        }
        if not labels:
            raise odd(str(folder / self.labels), f"files {PREFIX}CATEGORY.json")
        if self.questions is None:
            for category, rows in labels.items():
                for where, row in rows:
                    number = f"{category}/{value(row, 'question_id', where=where)}"
                    yield self._item(folder, row, row, number, category, where=where)
            return
        left = {category: iter(rows) for category, rows in labels.items()}
        for where, row in records(folder, self.questions):
            category = str(value(row, "category", where=where))
            found = next(left.get(category, iter(())), None)
            if found is None:
                raise DataError(
                    f"no label is left for category {category!r}",
                    where=where,
                    rule=f"as many labels in {PREFIX}{category}.json as questions",
                )
            number = str(value(row, "question_id", where=where))
            yield self._item(folder, row, found[1], number, category, where=where)

    def _item(
        self, folder: Path, row: Row, label: Row, number: str, category: str, *, where: str
    ) -> Item:
        picture = folder / self.images / str(value(row, "image", where=where))
        question = str(value(row, "text", where=where)).partition("\n")[0]
        return Item(
            id=number,
            fields={"question": question},
            where=where,
            media=(str(picture),),
            references=(str(value(label, "label", where=where)),),
            facts={"category": category},
        )
