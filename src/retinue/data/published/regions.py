"""Regions of pictures: RefCOCOg and VCR.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError
from retinue.data.published.raw import TAG, Raw, Row, listed, load, prompts, records, shown

BOX = re.compile(r"\{'bbox x axis'.*?\}")


def refcocog(raw: Raw) -> Iterator[Row]:
    """RefCOCOg: google_refexp_train_201511.json, COCO's instances_train2014.json beside it.

    One row per box, with its longest expression; the box stands in the request as text.
    """
    split = "val" if "val" in raw.path.name else "train"
    instances = listed(raw.beside(f"instances_{split}2014.json"), key="annotations")
    boxes = {one["id"]: one["bbox"] for one in instances}
    said = {one["refexp_id"]: one["raw"] for one in listed(raw.path, key="refexps")}
    found: dict[tuple[Any, ...], list[str]] = {}
    for row in listed(raw.path, key="annotations"):
        key = (row["image_id"], *boxes[row["annotation_id"]])
        found.setdefault(key, []).extend(said[one].removesuffix(".") for one in row["refexp_ids"])
    for (number, *box), texts in found.items():
        names = ("bbox x axis", "bbox y axis", "bbox width", "bbox height")
        region = str(dict(zip(names, box, strict=True)))
        asked = raw.rng.choice(prompts("regions")).replace("<REGION>", region)
        file = f"{split}2014/COCO_{split}2014_{number:0>12}.jpg"
        told = f"{max(texts, key=len).capitalize()}."
        yield {"input": shown(raw.picture(file, under="coco")) + asked, "output": told}


def refcocog_crops(raw: Raw) -> Iterator[Row]:
    """Rows of `refcocog` with each box cut out as a second picture (--images, --made)."""
    for number, row in enumerate(records(raw.path)):
        box = BOX.search(row["input"])
        if box is None:
            raise DataError(
                "no box in the input",
                where=f"{raw.path}, row {number}",
                rule="SRC is what --from refcocog wrote",
            )
        x, y, width, height = ast.literal_eval(box[0]).values()
        name = row["input"].split(TAG)[1]
        cut = raw.open(raw.picture(name)).crop((x, y, x + width, y + height))
        made = shown(raw.write(cut.convert("RGB"), f"region_{number}.jpg"))
        asked = row["input"].replace(box[0], made).replace("  ", " ")
        yield {"input": asked, "output": row["output"]}


def vcr(raw: Raw) -> Iterator[Row]:
    """VCR: train.jsonl or val.jsonl; objects that are spoken of are cut out (--images, --made)."""
    for row in records(raw.path):
        full = raw.picture(row["img_fn"], under="vcr1images")
        boxes = load(Path(raw.picture(row["metadata_fn"], under="vcr1images")))["boxes"]
        told_in = [row["question"], *row["answer_choices"], *row["rationale_choices"]]
        spoken = {
            one for words in told_in for word in words if isinstance(word, list) for one in word
        }
        names = row["objects"]
        asked = _said(row["question"], names) + "\n"
        rest = ""
        for index in sorted(spoken):
            name = _name(index, names)
            file = f"{Path(row['img_fn']).name}-{name}.jpg"
            cut = raw.open(full).crop(tuple(boxes[index][:4])).convert("RGB")
            made = shown(raw.write(cut, file))
            marked = f"{name}{made}".join(re.split(rf"\b{re.escape(name)}\b", asked))
            rest += f"{name}: {made}\n" if marked == asked else ""
            asked = marked
        answer = _said(row["answer_choices"][row["answer_label"]], names)
        reason = _said(row["rationale_choices"][row["rationale_label"]], names)
        yield {"input": shown(full) + asked + rest, "output": f"{answer} {reason}"}


def _said(words: Sequence[Any], names: Sequence[str]) -> str:
    """Words of VCR as a sentence, lists of objects as their names."""
    text = " ".join(_named(word, names) if isinstance(word, list) else word for word in words)
    for mark in (",", ".", "!", "?", "'"):
        text = text.replace(f" {mark}", mark)
    return text.capitalize()


def _named(indices: Sequence[int], names: Sequence[str]) -> str:
    found = [_name(index, names) for index in indices]
    return ", ".join(found[:-1]) + ", and " + found[-1] if len(found) > 1 else found[0]


def _name(index: int, names: Sequence[str]) -> str:
    """`person-a`: the object's kind and a letter for its number; two from the 27th on."""
    first, second = divmod(index, 26)
    letters = (chr(ord("a") + first - 1) if first else "") + chr(ord("a") + second)
    return f"{names[index]}-{letters}"
