"""Answers scored by a judge model; its reviews are kept, so that none is paid for twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from retinue.core.errors import DataError
from retinue.core.spec import Spec
from retinue.decode.rows import RowFile
from retinue.eval.questions import Question
from retinue.eval.scorers.judge import pair
from retinue.types import Message, Sample, Text

Row = dict[str, Any]
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


class Judge(Spec):
    """How a judge is asked; part of what a score means. kind pair: two answers are scored."""

    kind: str = "pair"
    max_new_tokens: int = 1024
    temperature: float = 0.2


def prompt_of(question: Question, text: str) -> Sample:
    """Context, question, the other model's answer and this one's, then the benchmark's rule.

    The form is that of LLaVA-Bench's review (haotian-liu/LLaVA).
    """
    row = question.row
    parts = [("Context", row["context"], False), ("Question", row["question"], False)]
    parts += [(f"{row['role']} 1", row["reference"], True), (f"{row['role']} 2", text, True)]
    said = "".join(
        f"[{name}]\n{body}\n\n" + (f"[End of {name}]\n\n" if ended else "")
        for name, body, ended in parts
    )
    said += f"[System]\n{row['rule']}\n\n"
    return Sample(
        id=question.sample.id,
        messages=(
            Message(role="system", parts=(Text(text=SYSTEM),)),
            Message(role="user", parts=(Text(text=said),)),
        ),
    )


def judged(
    rows: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    *,
    ask: Callable[[Iterator[Sample]], Iterator[Any]],
    kept: RowFile,
    judge: str,
) -> list[Row]:
    """The rows with `review`, `tuple` (reference's score, model's) and `score` (model's / 10).

    ask: the judge, samples -> answers in order. kept: reviews of earlier runs; an answer that was
    reviewed by the same judge is not sent again. A review without two scores has (-1, -1).
    """
    by_id = {question.sample.id: question for question in questions}
    known = {(row["id"], row["text"]): row["review"] for row in kept.rows if row["judge"] == judge}
    left = [row for row in rows if (row["id"], row["text"]) not in known]
    prompts = (prompt_of(by_id[row["id"]], row["text"]) for row in left)
    for row, answer in zip(left, ask(prompts), strict=True):
        made = {"id": row["id"], "text": row["text"], "judge": judge, "review": answer.text}
        kept.append(made)
        known[row["id"], row["text"]] = answer.text
    found = []
    for row in rows:
        review = known[row["id"], row["text"]]
        reference, model = pair(review)
        scores = {"model": model / 10, "reference": reference / 10}
        found.append(
            {
                **row,
                "score": max(model, 0.0) / 10,
                "scores": scores,
                "review": review,
                "tuple": [reference, model],
            }
        )
    if not found:
        raise DataError("no answer to judge", where=str(kept.path))
    return found
