"""Miniatures of benchmarks whose answers are ranked, of MMMU, and of TinyWorld's questions."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow
import pyarrow.parquet

from tiny import picture

Files = dict[str, Any]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def memes() -> Files:
    rows = [
        {"id": n, "img": f"img/0{n}.png", "label": n % 2, "text": f"look {n}"} for n in (1, 2, 3)
    ]
    train = [{**row, "id": 10 + row["id"]} for row in rows]
    return {
        "test_seen.jsonl": lines(*rows),
        "train.jsonl": lines(*train),
        **{f"img/0{n}.png": None for n in (1, 2, 3)},
    }


def imagenet() -> Files:
    classes = {
        "n01440764": "tench, Tinca tinca",
        "n01443537": "goldfish, Carassius auratus",
        "n02012849": "crane",
        "n03126707": "crane",
    }
    files: Files = {"LOC_synset_mapping.txt": "".join(f"{k} {v}\n" for k, v in classes.items())}
    for split in ("val", "train"):
        files |= {f"{split}/{k}/ILSVRC2012_{split}_{k}.JPEG": None for k in classes}
    return files


def mmmu(split: str) -> Files:
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    shown = {"bytes": buffer.getvalue(), "path": "1.png"}
    row = {
        "id": f"{split}_Art_1",
        "question": "<image 2> Which follows <image 1>?",
        "options": "['Left', 'Right', '<image 2>']",
        "image_1": shown,
        "image_2": shown,
        "answer": "B",
        "question_type": "multiple-choice",
        "topic_difficulty": "Easy",
    }
    free = {**row, "id": f"{split}_Art_2", "question": "How many?", "options": "[]"}
    free |= {"question_type": "open", "answer": "['12', 'twelve']", "image_2": None}
    rows = [row, free] if split == "validation" else [{**row, "answer": "?"}]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    return {f"Art/{split}-00000-of-00001.parquet": table.getvalue()}


def tinyworld() -> Files:
    def row(name: str, question: str, answer: str, task: str, scorer: str) -> Any:
        said = [{"type": "image", "image": "images/1.png"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": said}]
        return {"id": name, "messages": messages, "answer": answer, "task": task, "scorer": scorer}

    rows = [
        row("a/0", "Is there a circle?", "yes", "exist", "exact"),
        row("a/1", "How many?", "two", "count", "number"),
        row("a/2", "Describe it.", "a red circle", "caption", "text"),
    ]
    return {"test.jsonl": lines(*rows), "images/1.png": None}
