"""Answers scored by a judge model; its reviews are kept, so that none is paid for twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from retinue.core.errors import DataError
from retinue.core.spec import Spec
from retinue.decode.rows import RowFile
from retinue.eval.questions import Question
from retinue.eval.scorers.judge import pair
from retinue.types import Message, Sample, Text

Row = dict[str, Any]
_PRED = re.compile(r"[\"']pred[\"']\s*:\s*[\"'](\w+)")
_GRADE = re.compile(r"[\"']score[\"']\s*:\s*[\"']?(\d+(?:\.\d+)?)")
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."


class Judge(Spec):
    """How a judge is asked; part of what a score means.

    pair: it scores this answer and another model's. match: it says whether this answer means what
    the reference means, and how well from 0 to 5.
    """

    kind: Literal["pair", "match"] = "pair"
    max_new_tokens: int = 1024
    temperature: float = 0.2

    def prompt(self, question: Question, text: str) -> Sample:
        """What the judge is sent about an answer."""
        system, said = (pair_prompt if self.kind == "pair" else match_prompt)(question.row, text)
        return Sample(
            id=question.sample.id,
            messages=(
                Message(role="system", parts=(Text(text=system),)),
                Message(role="user", parts=(Text(text=said),)),
            ),
        )

    def read(self, review: str) -> tuple[float, dict[str, float]]:
        """(score from 0 to 1, figures) of a review."""
        if self.kind == "pair":
            reference, model = pair(review)
            return max(model, 0.0) / 10, {"model": model / 10, "reference": reference / 10}
        said, grade = match(review)
        return float(said), {"accuracy": float(said), "grade": grade}


def pair_prompt(row: Mapping[str, Any], text: str) -> tuple[str, str]:
    """Context, question, the other model's answer and this one's, then the benchmark's rule.

    The form is that of LLaVA-Bench's review (haotian-liu/LLaVA).
    """
    parts = [("Context", row["context"], False), ("Question", row["question"], False)]
    parts += [(f"{row['role']} 1", row["reference"], True), (f"{row['role']} 2", text, True)]
    said = "".join(
        f"[{name}]\n{body}\n\n" + (f"[End of {name}]\n\n" if ended else "")
        for name, body, ended in parts
    )
    return SYSTEM, said + f"[System]\n{row['rule']}\n\n"


def match_prompt(row: Mapping[str, Any], text: str) -> tuple[str, str]:
    """Question, right answer, this answer; asked for yes or no and a grade in one dictionary.

    The form of the reply is that of Video-ChatGPT's evaluation (arXiv 2306.05424).
    """
    said = (
        "Please evaluate the following video-based question-answer pair:\n\n"
        f"Question: {row['question']}\nCorrect Answer: {row['answer']}\n"
        f"Predicted Answer: {text}\n\n"
        "Does the predicted answer mean the same as the correct one? Synonyms and paraphrases do. "
        "Reply with a dictionary and nothing else: 'pred' is 'yes' or 'no', 'score' is an integer "
        "from 0 to 5, 5 being the best match. For example: {'pred': 'yes', 'score': 4}"
    )
    return SYSTEM, said


def match(review: str) -> tuple[bool, float]:
    """(whether the review says yes, its grade or 0) of a dictionary as text."""
    said, grade = _PRED.search(review), _GRADE.search(review)
    return bool(said and said[1].lower() == "yes"), float(grade[1]) if grade else 0.0


def judged(
    rows: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    *,
    ask: Callable[[Iterator[Sample]], Iterator[Any]],
    kept: RowFile,
    how: Judge,
    judge: str,
) -> list[Row]:
    """The rows with `review` and the `score` and `scores` that stand in it.

    ask: the judge, samples -> answers in order. kept: reviews of earlier runs; an answer that was
    reviewed by the same judge is not sent again.
    """
    by_id = {question.sample.id: question for question in questions}
    known = {(row["id"], row["text"]): row["review"] for row in kept.rows if row["judge"] == judge}
    left = [row for row in rows if (row["id"], row["text"]) not in known]
    prompts = (how.prompt(by_id[row["id"]], row["text"]) for row in left)
    for row, answer in zip(left, ask(prompts), strict=True):
        made = {"id": row["id"], "text": row["text"], "judge": judge, "review": answer.text}
        kept.append(made)
        known[row["id"], row["text"]] = answer.text
    found = []
    for row in rows:
        review = known[row["id"], row["text"]]
        score, scores = how.read(review)
        found.append({**row, "score": score, "scores": scores, "review": review})
    if not found:
        raise DataError("no answer to judge", where=str(kept.path))
    return found
