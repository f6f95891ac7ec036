"""What training asks of evaluation; floor 6 hands it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image as PILImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question that the trained model answered, for people to look at.

    pictures: PIL images, or paths of files.
    """

    question: str
    answer: str
    reference: str = ""
    pictures: Sequence[PILImage | str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores by name and a few answers.

    document, rows: the whole result, where there is one, and every question with its answer.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: Sequence[Answer] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()


class Evaluator(Protocol):
    """Called with the model in evaluation mode: at the end of a run, or on its way."""

    def __call__(self, model: Any, processor: Any) -> Evaluation: ...


class SaveModel(Protocol):
    """Writes a complete, loadable model folder; `hub.save.save` is one."""

    def __call__(self, model: Any, processor: Any, folder: Any) -> Any: ...
