"""Captions, paragraphs, formulas and changes between pictures.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from retinue.core.errors import DataError
from retinue.data.published.raw import (
    Raw,
    Row,
    listed,
    load,
    prompts,
    sentence,
    shown,
    text_of,
)

ENDS = (".", "?", "!")


def mscoco(raw: Raw) -> Iterator[Row]:
    """COCO's captions of 2017: every caption a row, one request per picture, shuffled."""
    folder = "val2017" if "val" in raw.path.name else "train2017"
    captions: dict[int, list[str]] = {}
    for row in listed(raw.path, key="annotations"):
        captions.setdefault(row["image_id"], []).append(text_of(row, "caption"))
    rows = []
    for number, texts in captions.items():
        request = raw.rng.choice(prompts("short_captions"))
        picture = shown(raw.picture(f"{folder}/{number:0>12}.jpg"))
        rows += [{"input": request + picture, "output": sentence(t, ends=ENDS)} for t in texts]
    raw.rng.shuffle(rows)
    yield from rows


def textcaps(raw: Raw) -> Iterator[Row]:
    """TextCaps: every caption a row, one request per picture."""
    for row in listed(raw.path, key="data"):
        request = raw.rng.choice(prompts("short_captions"))
        picture = shown(raw.picture(row["image_path"]))
        for caption in row["reference_strs"]:
            whole = caption if caption.endswith(ENDS) else f"{caption}."
            yield {"input": f"{request} {picture}", "output": whole.strip().capitalize()}


def img2p(raw: Raw) -> Iterator[Row]:
    """Stanford's paragraphs: SRC is train_split.json or another, paragraphs_v1.json beside it."""
    chosen = set(load(raw.path))
    for row in load(raw.beside("paragraphs_v1.json")):
        if row["image_id"] not in chosen:
            continue
        picture = raw.picture("/".join(row["url"].split("/")[-2:]))
        request = raw.rng.choice(prompts("long_captions"))
        told = text_of(row, "paragraph").strip().replace("  ", " ")
        told = ". ".join(part[:1].upper() + part[1:] for part in told.split(". "))
        yield {"input": f"{request}. {shown(picture)}", "output": told}


def hme100k(raw: Raw) -> Iterator[Row]:
    """HME100K: train_labels.txt or test_labels.txt, a formula a line, without its blanks."""
    folder = raw.path.name.replace("_labels.txt", "_images")
    try:
        lines = raw.path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("no readable labels", where=str(raw.path), rule=str(error)) from None
    for number, line in enumerate(lines, start=1):
        name, tab, formula = line.strip().partition("\t")
        if not tab:
            raise DataError(
                f"{line!r:.60}", where=f"{raw.path}:{number}", rule="a name, a tab, a formula"
            )
        picture = shown(raw.picture(f"{folder}/{name}"))
        asked = picture + raw.rng.choice(prompts("formulas"))
        yield {"input": asked, "output": f"$${formula.replace(' ', '')}$$"}


def levir_cc(raw: Raw) -> Iterator[Row]:
    """LEVIR-CC: earlier and later picture in any order, the longest sentence (--split)."""
    for row in _levir(raw):
        names = (("Earlier", "A"), ("Later", "B"))
        pictures = [
            f"{when} image: {shown(raw.picture(_place(row, folder), under='images'))}"
            for when, folder in names
        ]
        raw.rng.shuffle(pictures)
        request = raw.rng.choice(prompts("changes"))
        if raw.split in (None, row["split"]):
            yield {"input": f"{request}\n{', '.join(pictures)}", "output": _longest(row)}


def levir_cc_concat(raw: Raw) -> Iterator[Row]:
    """LEVIR-CC with both pictures in one, above each other or side by side (--made, --split)."""
    for row in _levir(raw):
        below = raw.rng.random() < 0.5
        request = raw.rng.choice(prompts("changes"))
        if raw.split not in (None, row["split"]):
            continue
        first, second = (
            raw.open(raw.picture(_place(row, folder), under="images")) for folder in "AB"
        )
        corner = (0, first.height) if below else (first.width, 0)
        size = (first.width + corner[0], first.height + corner[1])
        both = Image.new("RGB", size)
        both.paste(first, (0, 0))
        both.paste(second, corner)
        picture = shown(raw.write(both, f"{row['split']}/concat/{row['filename']}"))
        yield {"input": f"{request} {picture}", "output": _longest(row)}


def _levir(raw: Raw) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = listed(raw.path, key="images")
    known = sorted({row["split"] for row in rows})
    if raw.split is not None and raw.split not in known:
        raise DataError(f"no split {raw.split!r}", where=str(raw.path), rule=f"has {known}")
    return rows


def _place(row: dict[str, Any], folder: str) -> str:
    return f"{row['split']}/{folder}/{row['filename']}"


def _longest(row: dict[str, Any]) -> str:
    """The longest sentence; they are stored with a blank before and ` .` behind."""
    texts = [one["raw"][1:-2] for one in row["sentences"]]
    return f"{max(texts, key=len).strip().capitalize()}."
