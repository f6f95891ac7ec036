"""Submissions that are JSON or JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from retinue.eval.measures.ranked import certainty
from retinue.eval.scorers.short import gqa_answer
from retinue.eval.scorers.vqa import evalai_answer

Row = Mapping[str, Any]


def vqa(rows: Sequence[Row]) -> bytes:
    """VQA's server: [{question_id, answer}] for every question, "" where there is no answer."""
    return _json(
        [
            {"question_id": _number(row["id"]), "answer": evalai_answer(row["text"] or "")}
            for row in rows
        ]
    )


def vizwiz(rows: Sequence[Row]) -> bytes:
    """VizWiz's server: [{image, answer}]; a question's id is its picture's name."""
    return _json([{"image": row["id"], "answer": evalai_answer(row["text"] or "")} for row in rows])


def gqa(rows: Sequence[Row]) -> bytes:
    """GQA's evaluation: [{questionId, prediction}]."""
    return _json(
        [{"questionId": row["id"], "prediction": gqa_answer(row["text"] or "")} for row in rows]
    )


def seed(rows: Sequence[Row]) -> bytes:
    """SEED-Bench's leaderboard: a line {question_id, prediction} for every question."""
    lines = (
        json.dumps({"question_id": row["id"], "prediction": row["text"] or ""}) + "\n"
        for row in rows
    )
    return "".join(lines).encode()


def mmvet(rows: Sequence[Row]) -> bytes:
    """MM-Vet's judge: {`v1_0`: answer}."""
    found = {}
    for row in rows:
        name = str(row["id"])
        found[name if name.startswith("v1_") else f"v1_{name}"] = row["text"] or ""
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def mmmu(rows: Sequence[Row]) -> bytes:
    """MMMU's server: {id: answer}."""
    found = {str(row["id"]): row["text"] or "" for row in rows}
    return (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def docvqa(rows: Sequence[Row]) -> bytes:
    """The server of DocVQA and InfographicVQA: [{questionId, answer}]."""
    return _json([{"questionId": _number(str(r["id"])), "answer": r["text"] or ""} for r in rows])


def captions(rows: Sequence[Row]) -> bytes:
    """COCO's caption evaluation: [{image_id, caption}]."""
    return _json([{"image_id": _number(str(r["id"])), "caption": r["text"] or ""} for r in rows])


def hateful_memes(rows: Sequence[Row]) -> bytes:
    """Hateful Memes' server: a CSV with the probability of yes, and 1 where it is 0.5 or more."""
    lines = ["id,proba,label"]
    for row in rows:
        proba = certainty({**row, "text": row["text"] or ""}, "yes")
        lines.append(f"{row['id']},{proba:.6f},{int(proba >= 0.5)}")
    return "\n".join([*lines, ""]).encode()


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode()


def _number(text: str) -> int | str:
    """An id as the benchmark has it; VQA's are numbers."""
    return int(text) if text.isdigit() else text
