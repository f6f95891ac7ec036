"""A benchmark as one YAML file: files, prompt, decoding, scorer, measure, reference rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from retinue.core.errors import ConfigError, DataError
from retinue.core.paths import tasks
from retinue.core.registry import nearest
from retinue.core.spec import Spec
from retinue.core.yamlio import load_yaml
from retinue.decode.score import CHOICES
from retinue.eval.judging import Judge
from retinue.eval.measures import MEASURES
from retinue.eval.questions import Question
from retinue.eval.readers import READERS, Item, Reader
from retinue.eval.readers.base import Row, listed, load, records, value
from retinue.eval.scorers import SCORERS
from retinue.eval.submissions import SUBMISSIONS
from retinue.types import Media, Message, Part, Sample, Text

_FIELD = re.compile(r"\{(\w+)\}")
_NAMED = re.compile(r"<image (\d+)>")


class Reference(Spec):
    """A published result: whose, how much in the task's unit, and where it stands."""

    model: str
    score: float
    source: str
    note: str | None = None


class Decoding(Spec):
    """How answers are made; part of what a score means. stop: as in `retinue generate`."""

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    stop: tuple[str, ...] = ()


class Submission(Spec):
    """The file that the benchmark's server wants. all_of: questions that must all stand in it."""

    kind: str
    file: str
    all_of: str | None = None


class Rank(Spec):
    """The answer is the likeliest of these names, or of the reader's; none is written.

    norm: log-likelihoods are means over a name's tokens, or sums.
    """

    names: tuple[str, ...] = ()
    norm: Literal["mean", "sum"] = "mean"


class Task(Spec):
    """One benchmark. version: raised when prompt, decoding, scorer or measure change.

    prompt: text with `{field}` of the reader; a line that has a field and whose fields are all
    empty is left out. Pictures stand first, each followed by a line break. measure: rows ->
    figures, the first is the score. judge: how a model is asked that scores the answers, if one is
    named. unit: what 1.0 of the score is in published tables (100: per cent). rank: answers are
    chosen by likelihood. train: the reader's keys that are different for the examples of few-shot
    questions.
    """

    about: str
    version: int = Field(default=1, ge=1)
    source: str
    folder: str | None = None
    reader: Annotated[Any, BeforeValidator(READERS.spec_of)]
    prompt: str
    system: str | None = None
    decoding: Decoding = Decoding()
    rank: Rank | None = None
    train: dict[str, Any] | None = None
    scorer: str
    measure: str = "mean"
    unit: float = 100.0
    submission: Submission | None = None
    judge: Judge | None = None
    references: tuple[Reference, ...] = ()

    def check(self, *, where: str) -> None:
        """Raises ConfigError for a scorer, measure or submission that nobody offers."""
        SCORERS.get(self.scorer)
        MEASURES.get(self.measure)
        if self.submission is not None:
            SUBMISSIONS.get(self.submission.kind)
        if self.train is not None:
            self.train_reader(where=where)

    def train_reader(self, *, where: str) -> Reader:
        """The reader of the examples. Raises ConfigError for a task that names none."""
        if self.train is None:
            raise ConfigError(
                "the task names no examples",
                where=where,
                rule="`train` holds the reader's keys that differ for its training split",
                fix="--shots-from FILE names some, or add `train` to the task",
            )
        own = self.reader.model_dump(exclude_unset=True) | self.train
        found: Reader = READERS.spec_of({"kind": self.reader.kind, **own})
        return found

    def place(self, root: Path, name: str) -> Path:
        """The folder of the benchmark's files: `root` itself if it has no folder of its own."""
        own = root / (self.folder or name)
        return own if own.is_dir() else root

    def submission_of(
        self,
        questions: Sequence[Question],
        texts: Mapping[str, str],
        folder: Path,
        *,
        rankings: Mapping[str, Mapping[str, float]] | None = None,
    ) -> bytes:
        """The file to hand in; texts: question id -> answer; rankings: id -> name -> score."""
        assert self.submission is not None
        rows: list[dict[str, Any]] = [
            {
                "id": one.sample.id,
                "text": texts.get(one.sample.id),
                "fields": one.row,
                "ranking": (rankings or {}).get(one.sample.id),
            }
            for one in questions
        ]
        if self.submission.all_of is not None:
            every = question_rows(folder, self.submission.all_of)
            ids = [str(value(row, "question_id", where=where)) for where, row in every]
            rows = [{"id": name, "text": texts.get(name), "fields": {}} for name in ids]
        return SUBMISSIONS.get(self.submission.kind)(rows)

    def pinned(self) -> dict[str, Any]:
        """What decides the meaning of a score."""
        return {
            "version": self.version,
            "prompt": self.prompt,
            "system": self.system,
            "decoding": self.decoding.model_dump(mode="json"),
            **({"rank": self.rank.model_dump(mode="json")} if self.rank else {}),
            "scorer": self.scorer,
            "measure": self.measure,
            "judge": self.judge and self.judge.model_dump(mode="json"),
            "reader": self.reader.model_dump(mode="json"),
        }


def find(name: str, *, folders: Sequence[Path] = ()) -> tuple[str, Path]:
    """(name, file) of a task: a YAML file, a name in one of `folders`, or a packaged name.

    Raises ConfigError with the nearest name.
    """
    local = Path(name).expanduser()
    if local.suffix in (".yaml", ".yml"):
        if local.is_file():
            return local.stem, local
        raise ConfigError("there is no such task file", where=name)
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return name, path
    known = tasks()
    own = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    if name not in known:
        hint = nearest(name, sorted({*known, *own}))
        raise ConfigError(
            "there is no such task" + (f"; did you mean {hint!r}?" if hint else ""),
            where=name,
            rule="a task is a YAML file or a name of `retinue ls benchmarks`",
        )
    return name, known[name]


def load_task(path: Path) -> Task:
    """Read a task's file. Raises ConfigError naming what is wrong with it."""
    task = Task.parse(load_yaml(path)[0] or {}, where=str(path))
    task.check(where=str(path))
    return task


def questions_of(
    name: str, task: Task, folder: Path, *, limit: int | None = None
) -> list[Question]:
    """The questions of a benchmark whose files are in `folder`, with the task's prompt."""
    found: list[Question] = []
    for item in task.reader.items(folder):
        if limit is not None and len(found) == limit:
            break
        found.append(question_of(name, task, item))
    if not found:
        raise ConfigError("the benchmark has no question", where=str(folder))
    return found


def question_of(name: str, task: Task, item: Item) -> Question:
    """An item as the model is asked it."""
    asked = fill(task.prompt, item.fields, where=name)
    media = [Media(kind=item.kind, source=source) for source in item.media]
    parts: list[Part] = named(asked, media, where=item.where) if item.named else []
    if not item.named:
        parts = [part for one in media for part in (one, Text(text="\n"))]
        parts.append(Text(text=asked))
    said: tuple[Message, ...] = (Message(role="user", parts=tuple(parts)),)
    if task.system is not None:
        system = fill(task.system, item.fields, where=name)
        said = (Message(role="system", parts=(Text(text=system),)), *said)
    meta = {}
    if task.rank is not None:
        meta = {CHOICES: task.rank.names or item.choices}
        if not meta[CHOICES]:
            raise ConfigError("no answers to rank", where=name, fix="give `rank` its names")
    return Question(
        sample=Sample(id=item.id, messages=said, meta=meta),
        references=item.references,
        task=name,
        scorer=item.scorer or task.scorer,
        where=item.where,
        facts=dict(item.facts),
        aliases=item.aliases,
        row=item.row,
    )


def named(asked: str, media: Sequence[Media], *, where: str) -> list[Part]:
    """The text with each picture where it says `<image 1>`; a picture named again is words."""
    parts: list[Part] = []
    shown: set[int] = set()
    words = ""
    for number, piece in enumerate(_NAMED.split(asked)):
        if number % 2 == 0:
            words += piece
            continue
        place = int(piece)
        if not 1 <= place <= len(media):
            raise DataError(
                f"the question names <image {place}>",
                where=where,
                rule=f"it has {len(media)} pictures",
            )
        if place in shown:
            words += f"<image {place}>"
            continue
        parts += [Text(text=words)] if words else []
        parts.append(media[place - 1])
        shown.add(place)
        words = ""
    return [*parts, Text(text=words)] if words or not parts else parts


def fill(prompt: str, fields: Any, *, where: str) -> str:
    """A prompt with its fields; lines whose fields are all empty are left out."""
    lines = []
    for line in prompt.rstrip("\n").split("\n"):
        names = _FIELD.findall(line)
        unknown = [name for name in names if name not in fields]
        if unknown:
            raise ConfigError(
                f"the prompt names {unknown[0]!r}",
                where=where,
                rule=f"fields of its reader: {', '.join(fields)}",
            )
        if not names or any(fields[name] for name in names):
            lines.append(_FIELD.sub(lambda found: fields[found[1]], line))
    return "\n".join(lines)


def question_rows(folder: Path, name: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of a file of questions: VQA's {questions: [...]}, or a line for each."""
    if name.endswith(".jsonl"):
        return records(folder, name)
    return listed(value(load(folder, name), "questions", where=str(folder / name)), folder / name)
