"""WebSRC: questions about pictures of web pages, and the pages themselves.

Source: the conversion script of ChenDelong1999/instruct_flamingo (arXiv 2307.01003), which left
out the last question of every page and the answers that end in a period; here all are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.data.published.questions import asked_briefly
from retinue.data.published.raw import Raw, Row, load, prompts, records, shown, text_of

SHARE = 0.1
"""Of the questions, each of which gives its page a chance to become a row."""


def websrc(raw: Raw) -> Iterator[Row]:
    """WebSRC's questions: SRC is its folder `data`; --split train, dev or test."""
    for folder, row in _questions(raw):
        lead = raw.rng.choice(prompts("leads")) if raw.rng.random() < 0.5 else ""
        asked = lead + asked_briefly(text_of(row, "question"), rng=raw.rng)
        told = text_of(row, "answer")
        told = told.capitalize() if told.endswith(".") else f"{told.capitalize()}."
        yield {"input": asked + _picture(raw, folder, row), "output": told}


def websrc_html(raw: Raw) -> Iterator[Row]:
    """WebSRC's pages as HTML, a tenth as many as questions; --split train, dev or test."""
    for folder, row in _questions(raw):
        if raw.rng.random() >= SHARE:
            continue
        file = folder / "processed_data" / f"{row['id'][2:9]}.html"
        try:
            told = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError("no readable page", where=str(file), rule=str(error)) from None
        asked = raw.rng.choice(prompts("pages"))
        yield {"input": asked + _picture(raw, folder, row), "output": told}


def _questions(raw: Raw) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder of a site, question), site after site, by the question's id."""
    wanted = None
    if raw.split is not None:
        splits = load(raw.path / "dataset_split_release.json")
        if raw.split not in splits:
            raise DataError(f"no split {raw.split!r}", where=str(raw.path), rule=f"{list(splits)}")
        wanted = set(splits[raw.split])
    files = sorted(raw.path.rglob("dataset.csv"))
    if not files:
        raise DataError("no dataset.csv", where=str(raw.path), rule="WebSRC's folder data/")
    for file in files:
        folder = file.parent
        if wanted is None or folder.parent.name[:2] + folder.name in wanted:
            rows = sorted(records(file), key=lambda row: row["id"])
            yield from ((folder, row) for row in rows)


def _picture(raw: Raw, folder: Path, row: dict[str, Any]) -> str:
    place = folder.relative_to(raw.path) / "processed_data" / f"{row['id'][2:9]}.png"
    return shown(raw.picture(place.as_posix()))
