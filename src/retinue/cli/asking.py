"""Evaluation during training: the questions of `train.evaluate`, asked through eval's runner."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinue.train.evaluator import Evaluation, Evaluator
    from retinue.train.spec import EvaluateSpec

SHOWN = 8
"""Answers on the report page, wrong ones first."""


def asker(spec: EvaluateSpec | None) -> Evaluator | None:
    """Reads the questions now, so that a wrong file is told before training; asks them later.

    Raises ConfigError or DataError as `retinue eval` does.
    """
    if spec is None:
        return None
    from retinue.decode.offline import generate
    from retinue.decode.sampling import SamplingParams
    from retinue.decode.score import rank
    from retinue.eval.benchmark import with_benchmark
    from retinue.eval.questions import check_references, read_questions
    from retinue.eval.results import failures, result
    from retinue.eval.runner import evaluate
    from retinue.eval.task import find, load_task, questions_of

    name, task = "", None
    if spec.task is not None:
        name, path = find(spec.task)
        task = load_task(path)
        questions = questions_of(name, task, task.place(spec.root, name), limit=spec.limit)
    else:
        assert spec.data is not None
        questions = read_questions(spec.data, scorer=spec.scorer, limit=spec.limit)
    check_references(questions)
    decoding = task.decoding.model_dump() if task else {"max_new_tokens": 64}
    if spec.max_new_tokens is not None:
        decoding["max_new_tokens"] = spec.max_new_tokens
    params = SamplingParams.parse(decoding, where="train.evaluate")
    norm = task.rank.norm if task is not None and task.rank is not None else None
    pictures = {one.sample.id: one.sample.media for one in questions}

    def ask(model: Any, processor: Any) -> Evaluation:
        from retinue.train.evaluator import Answer, Evaluation

        answers = partial(generate, params=params) if norm is None else partial(rank, norm=norm)
        rows = evaluate(
            lambda samples: answers(model, processor, samples, batch_size=spec.batch_size),
            questions,
            more=None if norm is None else lambda answer: {"ranking": answer.ranking()},
        )
        settings = {"params": params.model_dump(mode="json"), **spec.model_dump(mode="json")}
        document = result(rows, questions=questions, settings=settings)
        metrics = {"score": document["metrics"]["score"]}
        metrics |= {task: own["score"] for task, own in document["tasks"].items()}
        if task is not None:
            document = with_benchmark(document, rows, name=name, task=task)
            metrics = document["metrics"]
        wrong = failures(rows, count=SHOWN)
        right = [row for row in rows if row not in wrong]
        shown = [
            Answer(
                question=row["question"],
                answer=row["text"],
                reference=" | ".join(row["references"]),
                pictures=[
                    one.source
                    for one in pictures[row["id"]]
                    if one.kind == "image" and isinstance(one.source, str)
                ],
            )
            for row in [*wrong, *right][:SHOWN]
        ]
        return Evaluation(metrics=metrics, answers=shown, document=document, rows=rows)

    return ask
