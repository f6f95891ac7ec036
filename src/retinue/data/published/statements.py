"""Statements about pictures that are true or false.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from retinue.core.errors import DataError
from retinue.data.published.raw import Raw, Row, prompts, records, shown, text_of


def judged(statement: str, *, true: bool, rng: Random) -> tuple[str, str]:
    """(question, answer) on a statement without its period, in one of forty wordings."""
    question, yes, no = rng.choice(prompts("statements"))
    return question.replace("{}", statement), yes if true else no


def vsr(raw: Raw) -> Iterator[Row]:
    """Visual Spatial Reasoning: train.jsonl, dev.jsonl or test.jsonl."""
    for row in records(raw.path):
        if row.get("label") not in (0, 1):
            raise DataError(f"label {row.get('label')!r}", where=str(raw.path), rule="0 or 1")
        asked, told = judged(text_of(row, "caption")[:-1], true=row["label"] == 1, rng=raw.rng)
        picture = raw.picture(text_of(row, "image"), under="images")
        yield {"input": f"{shown(picture)} {asked}", "output": told}


def nlvr2(raw: Raw) -> Iterator[Row]:
    """NLVR2: two named pictures before or after the statement; train.json, dev.json and others."""
    for row in records(raw.path):
        true = str(row.get("label")) == "True"
        asked, told = judged(text_of(row, "sentence")[:-1], true=true, rng=raw.rng)
        left = raw.rng.choice(prompts("left"))
        right = prompts("right")[prompts("left").index(left)]
        between = raw.rng.choice(prompts("separators"))
        stem = text_of(row, "identifier").rpartition("-")[0]
        folder = f"{row['directory']}/" if stem.startswith("train") else ""
        pair = [
            name + shown(raw.picture(f"{folder}{stem}-img{side}.png"))
            for side, name in enumerate((left, right))
        ]
        pictures = between.join(pair)
        last = raw.rng.random() < 0.5
        yield {"input": f"{asked} {pictures}" if last else f"{pictures} {asked}", "output": told}
