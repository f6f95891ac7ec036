"""Ask every question, judge every answer, keep every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from retinue.decode.rows import RowFile
from retinue.eval.questions import Question, check_references
from retinue.eval.scorers import SCORERS, headline

Row = dict[str, Any]


class Answer(Protocol):
    """What a backend says to one sample; a decoded Completion is one."""

    @property
    def text(self) -> str: ...

    @property
    def tokens(self) -> list[int]: ...

    @property
    def finish(self) -> str: ...

    @property
    def number(self) -> int: ...


class Predict(Protocol):
    """A backend: answers in the order of the samples; `number` is the place among them.

    A sample it cannot use has no answer. The decoding loop, a served model or a file of
    predictions can stand here.
    """

    def __call__(self, samples: Iterable[Any], /) -> Iterator[Answer]: ...


def evaluate(
    predict: Predict,
    questions: Sequence[Question],
    *,
    rows: RowFile | None = None,
    skipped: Iterable[int] = (),
    progress: Callable[[int], None] | None = None,
    more: Callable[[Any], Row] | None = None,
) -> list[Row]:
    """Rows {id, task, scorer, question, references, text, tokens, finish, score, scores} in order.

    rows: a file that receives each row as it is made; what it holds already is kept and not asked
    again. skipped: inputs that an earlier run could not use. more: further fields of a row, from
    its answer. Raises DataError for references that
    their scorer cannot read (before anything is asked) and for rows of other questions.
    """
    check_references(list(questions))
    made = [] if rows is None else list(rows.rows)
    first = 0
    if rows is not None:
        first = rows.settled((item.sample.id for item in questions), skipped=set(skipped))
    left = questions[first:]
    for answer in predict(item.sample for item in left):
        row = {**judge(left[answer.number], answer), **(more(answer) if more else {})}
        made.append(row)
        if rows is not None:
            rows.append(row)
        if progress:
            progress(first + answer.number + 1)
    return made


def judge(question: Question, answer: Answer) -> Row:
    """One answer with its scores; `score` is the scorer's headline metric, None where unknown."""
    scores = {}
    if question.references:
        scores = SCORERS.get(question.scorer)(answer.text, question.references)
    return {
        "id": question.sample.id,
        "task": question.task,
        "scorer": question.scorer,
        "question": question.sample.messages[-1].text.strip(),
        "references": list(question.references),
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish": answer.finish,
        "score": headline(scores) if scores else None,
        "scores": scores,
        **({"facts": dict(question.facts)} if question.facts else {}),
    }
