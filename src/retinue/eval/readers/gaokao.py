"""Reader of GAOKAO-MM: a file of questions per subject."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from retinue.core.errors import ConfigError
from retinue.eval.readers.base import Item, Reader, listed, load, odd, value
from retinue.eval.scorers.gaokao import SUBJECTS


class Gaokao(Reader):
    """GAOKAO-MM: KEYWORD.json with `example`; several: the subjects with one or more letters."""

    kind: Literal["gaokao"] = "gaokao"
    data: str = "Data"
    several: bool = False

    def items(self, folder: Path) -> Iterator[Item]:
        """Subject after subject; only a question's first picture is shown, as in the harness."""
        found = sorted((folder / self.data).glob("*.json"))
        if not found:
            raise odd(str(folder / self.data), "files KEYWORD.json")
        for path in found:
            subject = SUBJECTS.get(path.stem)
            if subject is None:
                raise ConfigError(
                    f"no file of GAOKAO-MM is called {path.stem!r}",
                    where=str(path),
                    rule=f"known: {', '.join(SUBJECTS)}",
                )
            if subject.several != self.several:
                continue
            rows = value(load(path.parent, path.name), "example", where=str(path))
            for where, row in listed(rows, path):
                pictures = list(row.get("picture") or ())
                yield Item(
                    id=f"{path.stem}/{value(row, 'index', where=where)}",
                    fields={"question": str(value(row, "question", where=where))},
                    where=where,
                    media=tuple(str(folder / one) for one in pictures[:1]),
                    references=("".join(value(row, "answer", where=where)),),
                    facts={"subject": subject.name, "year": row.get("year")},
                )
