"""Rows of the instruction format made over: clean-ups, and warnings in place of answers.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path
from random import Random

from retinue.core.errors import ConfigError
from retinue.data.published.raw import TAG, Raw, Row, records, shown, text_of

WARNING = "Clever Flamingo Warning: NSFW content detected!"
PICTURES = {".png", ".jpg", ".jpeg"}


def lamm_clean(raw: Raw) -> Iterator[Row]:
    """Rows of `lamm` without those whose answers hold boxes; single line ends before turns."""
    for row in records(raw.path):
        if not set("[]") & set(text_of(row, "output")):
            asked = text_of(row, "input").replace("\n\n###", "\n###")
            yield {"input": asked, "output": row["output"]}


def artemis(raw: Raw) -> Iterator[Row]:
    """Rows of ArtEmis whose answers spell blanks as underscores."""
    for row in records(raw.path):
        told = text_of(row, "output").replace("_", " ")
        yield {"input": text_of(row, "input"), "output": told}


def nsfw(raw: Raw) -> Iterator[Row]:
    """Questions of another set about pictures of --images, answered by a warning.

    SRC is any file of the instruction format; every picture becomes one of the folder, and a
    fifth of the questions become a few random signs.
    """
    folder = Path(raw.images or "")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES)
    if raw.images is None or not files:
        raise ConfigError("no pictures to warn of", where="--images", fix="name their folder")
    for row in records(raw.path):
        asked = text_of(row, "input")
        if TAG not in asked:
            continue
        if raw.rng.random() < 0.2:
            asked = _signs(raw.rng)
        picture = shown(str(raw.rng.choice(files)))
        asked = picture.join(re.split(rf"{TAG}.*?{TAG}", asked))
        yield {"input": asked, "output": WARNING}


def _signs(rng: Random) -> str:
    """A picture alone, or among one to five random signs."""
    if rng.random() < 0.5:
        return shown("")
    count = rng.randint(1, 5)
    text = " ".join(rng.choices(string.ascii_letters + string.digits + string.punctuation, k=count))
    at = rng.randint(0, count * 2)
    return text[:at] + shown("") + text[at:]
