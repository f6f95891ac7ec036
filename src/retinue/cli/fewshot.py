"""`retinue eval --shots K`: examples before every question, drawn at random or by likeness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.cli.benchmarks import Job
    from retinue.eval.questions import Question

Shots = Annotated[
    int | None,
    typer.Option(
        "--shots", min=0, max=256, help="Examples with answers before each question, as turns."
    ),
]
ShotsFrom = Annotated[
    Path | None,
    typer.Option(
        "--shots-from",
        metavar="FILE",
        help="Rows with answers (chat or LLaVA's) to take them of; default: the benchmark's own "
        "training split.",
    ),
]
Select = Annotated[
    Literal["random", "rices"],
    typer.Option(help="Of --shots: at random, or with the pictures nearest by encoder features."),
]
TextShots = Annotated[
    int,
    typer.Option(
        "--text-shots",
        min=0,
        max=256,
        help="With --shots 0: examples without pictures; OpenFlamingo's 0 shots have 2.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """The options together; `put` adds the examples, `setting` is what a result keeps of them."""

    shots: int | None
    source: Path | None
    select: str
    text_shots: int
    seed: int

    @property
    def wanted(self) -> bool:
        return bool(self.shots) or bool(self.text_shots)

    def check(self, *, saved: bool, tasks: bool = False) -> None:
        """Raise ConfigError for options that do not fit together."""
        from retinue.core.errors import ConfigError

        if self.wanted and saved:
            raise ConfigError("--shots with saved answers", rule="these were given already")
        if self.wanted and self.source is None and not tasks:
            raise ConfigError("--shots without examples", fix="--shots-from FILE names them")
        if self.source is not None and self.shots is None:
            raise ConfigError("--shots-from without --shots", fix="say how many, for instance 4")
        if self.text_shots and self.shots:
            raise ConfigError("--text-shots with --shots", rule="they stand in for 0 shots")
        if self.text_shots and self.select == "rices":
            raise ConfigError("--text-shots by pictures", fix="--select random")

    @property
    def setting(self) -> dict[str, Any] | None:
        from retinue.cli.answering import identity

        if not self.wanted:
            return None
        return {
            "count": self.shots,
            "text": self.text_shots,
            "from": str(self.source or "train"),
            "rows": identity(self.source) if self.source else None,
            "select": self.select,
            "seed": self.seed,
        }

    def put(
        self,
        questions: list[Question],
        *,
        model: Any = None,
        processor: Any = None,
        path: str = "",
        media_root: Path | None = None,
        job: Job | None = None,
    ) -> list[Question]:
        """The questions behind their examples. model: whose encoder compares pictures.

        job: the benchmark whose training split is read where no file is named.
        """
        from retinue.core.errors import ConfigError
        from retinue.eval.examples import drawn, nearest, read_shots, task_shots, with_shots

        if not self.wanted or not questions:
            return questions
        if self.source is not None:
            shots, place = read_shots(self.source, media_root=media_root), self.source
        else:
            assert job is not None
            shots = task_shots(job.name, job.task, job.folder)
            place = job.folder / f"{job.name}.train"
        count = self.shots or self.text_shots
        if self.select == "random":
            chosen = drawn(questions, shots, count=count, seed=self.seed)
        elif model is None:
            raise ConfigError("--select rices without a model here", fix="--select random")
        else:
            known, asked = self.features(shots, questions, model, processor, path, place=place)
            chosen = nearest(questions, shots, count=count, known_ND=known, asked_ND=asked)
        shown = [shot.blind for shot in shots] if self.text_shots else shots
        return [
            with_shots(question, [shown[number] for number in own])
            for question, own in zip(questions, chosen, strict=True)
        ]

    def features(
        self, shots: Sequence[Any], questions: Sequence[Question], model: Any, processor: Any,
        path: str, *, place: Path,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Of examples and questions; those of the examples are kept beside their file."""
        from retinue.cli.answering import identity
        from retinue.eval.examples import picture_features

        index = place.with_name(f"{place.name}.rices.safetensors")
        mark = f"{identity(path) or path}-{identity(place)}-{processor.fingerprint()}"
        note(f"comparing pictures: {len(shots)} examples, index in {index}")
        known = picture_features(
            model, processor, [shot.picture for shot in shots], cache=index, mark=mark
        )
        last = [[*q.sample.media[-1:], *q.sample.messages[-1].media[:1]] for q in questions]
        first = [own[-1] if own else None for own in last]
        return known, picture_features(model, processor, first)
