"""Reader of MMMU: a folder per subject with Parquet files, pictures inside."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from retinue.core.errors import DataError, EnvError
from retinue.eval.readers.base import LETTERS, Item, Reader, lettered, odd, value
from retinue.eval.scorers.mmmu import DOMAIN_OF

MOST = 7
"""Pictures that a question may have."""


class Mmmu(Reader):
    """MMMU: SUBJECT/SPLIT-*.parquet as the Hugging Face hub has it, letters and free answers.

    letters, words: how the two kinds are told to answer, the prompt's `{how}`. Pictures stand
    where the text says `<image 1>`, and those that it does not name are left out.
    """

    kind: Literal["mmmu"] = "mmmu"
    split: str = "validation"
    letters: str = "Answer with the option's letter from the given choices directly."
    words: str = "Answer the question using a single word or phrase."

    def items(self, folder: Path) -> Iterator[Item]:
        """Subject after subject. Raises EnvError without pyarrow."""
        found = sorted(folder.glob(f"*/{self.split}-*.parquet"))
        if not found:
            raise odd(str(folder), f"SUBJECT/{self.split}-*.parquet, as in the dataset MMMU/MMMU")
        for path in found:
            for number, row in enumerate(parquet(path)):
                yield self.item(row, subject=path.parent.name, where=f"{path} row {number}")

    def item(self, row: Mapping[str, Any], *, subject: str, where: str) -> Item:
        """A question; answers of the test split are `?`, which is none."""
        free = value(row, "question_type", where=where) == "open"
        options = [] if free else [str(one) for one in plain(row, "options", where=where)]
        answer = str(value(row, "answer", where=where))
        if answer in ("", "?"):
            references: tuple[str, ...] = ()
        elif free:
            several = plain(row, "answer", where=where) if answer[0] == "[" else [answer]
            references = tuple(map(str, several))
        else:
            marked = (f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))
            references = (answer, *marked)
        return Item(
            id=str(value(row, "id", where=where)),
            fields={
                "question": str(value(row, "question", where=where)),
                "options": lettered(options),
                "how": self.words if free else self.letters,
            },
            where=where,
            media=tuple(pictures(row)),
            named=True,
            references=references,
            facts={
                "subject": subject,
                "domain": DOMAIN_OF.get(subject, "other"),
                "kind": "open" if free else "choice",
                **{k: row[k] for k in ("topic_difficulty", "img_type") if row.get(k)},
            },
        )


def pictures(row: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of `image_1`, `image_2`, ...; a number that is missing in between ends them."""
    for number in range(1, MOST + 1):
        found = row.get(f"image_{number}")
        if not found:
            return
        yield bytes(found["bytes"] if isinstance(found, Mapping) else found)


def plain(row: Mapping[str, Any], name: str, *, where: str) -> list[Any]:
    """A list that is written as Python writes it. Raises DataError for anything else."""
    try:
        found = ast.literal_eval(str(value(row, name, where=where)))
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list):
        raise odd(where, f"a list in {name!r}")
    return found


def parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file. Raises EnvError without pyarrow, DataError for another form."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EnvError("Parquet files need pyarrow", fix="pip install 'retinue[hdf5]'") from error
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError("not a Parquet file", where=str(path), rule=str(error)) from None
    return rows
