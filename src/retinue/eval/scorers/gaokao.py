"""Scorers of GAOKAO-MM: Chinese college-entrance questions with pictures.

Source: GAOKAO-MM (arXiv 2402.15745) and the rules of its released harness.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retinue.core.errors import ConfigError
from retinue.core.registry import nearest
from retinue.eval.scorers.base import best

ANSWER = "【答案】"
TAIL = 10
"""Characters at the end that count where an answer to several letters has no mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A file of questions: its subject, how many it has, whether several letters may be right."""

    name: str
    questions: int
    several: bool = False


SUBJECTS = {
    "2010-2023_Math_MCQs": Subject(name="Math", questions=80),
    "2010-2023_History_MCQs": Subject(name="History", questions=34),
    "2010-2023_Biology_MCQs": Subject(name="Biology", questions=21),
    "2010-2023_Political_Science_MCQs": Subject(name="Political_Science", questions=33),
    "2010-2023_Physics_MCQs": Subject(name="Physics", questions=174, several=True),
    "2010-2023_Chemistry_MCQs": Subject(name="Chemistry", questions=67),
    "2010-2023_Chinese_Pratical_Lit": Subject(name="Chinese", questions=16, several=True),
    "2010-2023_Geography_MCQs": Subject(name="Geography", questions=221),
}
"""Keyword of a file -> its subject; the harness divides by these counts whatever was answered."""


def gaokao(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The last letter from A to D anywhere in the output is the answer, and must be the key.

    Source: GAOKAO-MM (arXiv 2402.15745), questions with one right letter.
    """
    found = one_letter(prediction)
    return best(references, lambda key: {"gaokao": float(_same(found, key))})


def gaokao_several(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """All letters of the answer must be the key: 1; if they stand in it side by side: 0.5.

    Source: GAOKAO-MM (arXiv 2402.15745), physics and Chinese.
    """
    found = several_letters(prediction)

    def score(key: str) -> dict[str, float]:
        part = bool(found) and found.lower() in key.lower()
        return {"gaokao": 1.0 if _same(found, key) else 0.5 * part}

    return best(references, score)


def one_letter(output: str) -> str:
    """The last of A to D in an output, "" where there is none."""
    letters = re.findall("[ABCD]", output)
    return letters[-1] if letters else ""


def several_letters(output: str) -> str:
    """The letters after the mark 【答案】, else those of the last ten characters, in order.

    White space is ignored; a mark at the very start counts for none, as in the harness.
    """
    text = "".join(output.split())
    at = text.find(ANSWER)
    return "".join(re.findall("[ABCD]", text[at:] if at > 0 else text[-TAIL:]))


def accuracies(points: Mapping[str, float]) -> dict[str, float]:
    """Points by a file's keyword -> accuracy by subject, and `overall` over all 646 questions.

    Rounded to three digits as the harness does. Raises ConfigError for an unknown keyword.
    """
    found = {}
    for keyword, value in points.items():
        if keyword not in SUBJECTS:
            hint = nearest(keyword, list(SUBJECTS))
            raise ConfigError(
                f"no file of GAOKAO-MM is called {keyword!r}",
                rule=f"known: {', '.join(SUBJECTS)}",
                fix=f"did you mean {hint!r}?" if hint else None,
            )
        subject = SUBJECTS[keyword]
        found[subject.name] = round(value / subject.questions, 3)
    total = sum(subject.questions for subject in SUBJECTS.values())
    return {**found, "overall": round(sum(points.values()) / total, 3)}


def _same(found: str, key: str) -> bool:
    return bool(found) and found.lower() == key.lower()
