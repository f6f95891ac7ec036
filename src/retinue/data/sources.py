"""Published data sets as Instruct-Flamingo's JSON: one function each, by name.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retinue.core.errors import DataError

TAG = "<img_path>"
Row = dict[str, str]


def shown(path: str) -> str:
    """A picture's place in the text."""
    return f"{TAG}{path}{TAG}"


def llava(file: Path) -> Iterator[Row]:
    """LLaVA-Instruct-150K on COCO: a row per answer, earlier turns stand in the question."""
    for row in _rows(file):
        picture, past = f"coco/train2014/COCO_train2014_{row['image']}", ""
        turns = row["conversations"]
        for asked, told in zip(turns[::2], turns[1::2], strict=False):
            question = asked["value"].replace("<image>\n", "").replace("\n<image>", "")
            past += question if not past else f"\n### Human: {question}"
            yield {"input": shown(picture) + past, "output": told["value"]}
            past += f"\n\n### Assistant: {told['value']}\n"


def lrv(file: Path) -> Iterator[Row]:
    """LRV-Instruction; Visual Genome's `vg/image_data.json` stands beside. Whole sentences only."""
    places = {
        str(one["image_id"]): "/".join(["vg", *one["url"].split("/")[-2:]])
        for one in _rows(file.parent / "vg" / "image_data.json")
    }
    for row in _rows(file, key="annotations"):
        question, answer = row["question"], row["answer"]
        if ":" not in question + answer and len(answer) >= 16 and answer.endswith("."):
            yield {"input": shown(places[str(row["image_id"])]) + question, "output": answer}


def wizardlm(file: Path) -> Iterator[Row]:
    """WizardLM Evol-Instruct: the last question and answer of each conversation."""
    for row in _rows(file):
        asked, told = row["conversations"][-2:]
        yield {"input": asked["value"], "output": told["value"]}


def pf_1m(file: Path) -> Iterator[Row]:
    """PF-1M: the first 800,000 rows whose answer was not cut off."""
    whole = (row for row in _rows(file) if not row["output"].endswith("..."))
    for number, row in enumerate(whole):
        if number == 800_000:
            return
        asked = f"{row.get('instruction', '')} {row.get('input', '')}".strip()
        yield {"input": asked, "output": row["output"]}


def video_chat(file: Path) -> Iterator[Row]:
    """VideoChat's frames: marks of frames go, marks of turns get one form."""
    for row in _rows(file):
        text = re.sub(r"\bf\d+ ", "", row["input"]).replace("\n\n###", "\n###")
        for role in ("Human", "Assistant"):
            text = text.replace(f"### {role}:", f"### {role}: ")
        yield {"input": text, "output": row["output"]}


SOURCES: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    "llava": llava,
    "lrv": lrv,
    "wizardlm": wizardlm,
    "pf_1m": pf_1m,
    "video_chat": video_chat,
}
"""Name of a published data set -> its rows in format `instruct`."""


def _rows(file: Path, *, key: str | None = None) -> list[dict[str, Any]]:
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("no readable JSON", where=str(file), rule=str(error)) from None
    rows = data.get(key) if key and isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise DataError("no list of records", where=str(file), rule="a JSON list of objects")
    return rows
