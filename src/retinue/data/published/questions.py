"""Questions with short answers.

Source: the conversion scripts of ChenDelong1999/instruct_flamingo (arXiv 2307.01003).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from retinue.core.errors import DataError
from retinue.data.published.raw import Raw, Row, listed, load, prompts, shown, text_of


def asked_briefly(question: str, *, rng: Random, hints: str = "brief") -> str:
    """A question with a request for a short answer behind it or before it."""
    behind = rng.random() > 0.5
    hint = rng.choice(prompts(hints))
    return f"{question} {hint}" if behind else f"{hint} {question}"


def vqav2(raw: Raw) -> Iterator[Row]:
    """VQAv2: SRC is the file of questions, the annotations stand beside it; the first answer."""
    name = raw.path.name
    split = "val" if "val2014" in name else "train"
    answers = listed(raw.beside(f"v2_mscoco_{split}2014_annotations.json"), key="annotations")
    questions = listed(raw.path, key="questions")
    if len(answers) != len(questions):
        raise DataError(
            f"{len(questions)} questions, {len(answers)} annotations",
            where=str(raw.path),
            rule="both files list the same questions in the same order",
        )
    for question, answer in zip(questions, answers, strict=True):
        file = f"{split}2014/COCO_{split}2014_{question['image_id']:012d}.jpg"
        asked = asked_briefly(question["question"], rng=raw.rng, hints="brief_or_one_word")
        told = f"{answer['answers'][0]['answer'].capitalize()}."
        yield {"input": shown(raw.picture(file, under="coco")) + asked, "output": told}


def gqa(raw: Raw) -> Iterator[Row]:
    """GQA's balanced questions (train_balanced_questions.json and the like)."""
    found = load(raw.path)
    if not isinstance(found, dict):
        raise DataError("no object of questions", where=str(raw.path), rule="GQA's own JSON")
    for row in found.values():
        picture = raw.picture(f"{row['imageId']}.jpg", under="gqa/images")
        asked = asked_briefly(text_of(row, "question"), rng=raw.rng)
        told = f"{text_of(row, 'answer').capitalize()}."
        yield {"input": shown(picture) + asked, "output": told}


def grid_3d(raw: Raw) -> Iterator[Row]:
    """QDRL's 3-D grids: SRC is train_idxs.json or another, questions.json beside it."""
    found = load(raw.beside("questions.json"))
    places = {int(file.stem): file for file in raw.path.parent.rglob("*.png")}
    for index in load(raw.path):
        row = found[index]
        file = places.get(int(row["img_idx"]), Path(f"{row['img_idx']}.png"))
        name = file.relative_to(raw.path.parent) if file.is_absolute() else file
        question = " ".join(row["question"]).replace(" ?", "?")
        lead = raw.rng.choice(prompts("leads")) if raw.rng.random() > 0.5 else ""
        behind = raw.rng.random() > 0.5
        hint = raw.rng.choice(prompts("brief"))
        asked = lead + (f"{question} {hint}" if behind else f"{hint} {question}")
        kind = {"True": "yes", "False": "no"}.get(str(row["answer"]), "answers")
        told = raw.rng.choice(prompts(kind)).replace("{}", str(row["answer"]))
        yield {"input": shown(raw.picture(name.as_posix())) + asked, "output": told}


def lrv(raw: Raw) -> Iterator[Row]:
    """LRV-Instruction; Visual Genome's `vg/image_data.json` stands beside. Whole sentences only."""
    places = {
        str(one["image_id"]): "/".join(one["url"].split("/")[-2:])
        for one in load(raw.beside("vg/image_data.json"))
    }
    for row in listed(raw.path, key="annotations"):
        question, answer = text_of(row, "question"), text_of(row, "answer")
        if ":" not in question + answer and len(answer) >= 16 and answer.endswith("."):
            picture = raw.picture(places[str(row["image_id"])], under="vg")
            yield {"input": shown(picture) + question, "output": answer}
