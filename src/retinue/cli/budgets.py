"""What --visual-tokens means to chat, generate and eval; eval's curve over several budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli.common import note

if TYPE_CHECKING:
    from retinue.decode.budget import Budget
    from retinue.processor import Processor

VisualTokens = Annotated[
    str | None,
    typer.Option(
        "--visual-tokens",
        metavar="N|auto",
        help="Visual tokens per view of pictures that name none; auto: few first, more where the "
        "answer is unsure. Default: the model's.",
    ),
]
VisualTokenList = Annotated[
    str | None,
    typer.Option(
        "--visual-tokens",
        metavar="N,N,...|all|auto",
        help="As in chat; several, with commas, are run one after the other and compared.",
    ),
]
AutoThreshold = Annotated[
    str | None,
    typer.Option(
        "--auto-threshold",
        metavar="X|FILE",
        help="With auto: the confidence from 0 to 1 that an answer needs, or a file of "
        "eval --fit-auto. Default: the file in the model's folder, else 0.9.",
    ),
]
Choices = dict[str, "Budget"]
"""Name of a run (`36`, `auto`) -> its budget."""
Write = Callable[..., dict[str, Any]]
"""`eval.write_result` with everything given but the file, the budget and a clock."""


def chosen(processor: Processor, asked: str | None, *, path: str, threshold: str | None) -> Budget:
    """The budget that the options ask for. Raises ConfigError for one the model cannot meet."""
    from retinue.core.errors import ConfigError
    from retinue.core.paths import locate
    from retinue.decode.budget import budget_of
    from retinue.hub.resolve import resolve

    if threshold is not None and asked != "auto":
        raise ConfigError("--auto-threshold without auto", fix="--visual-tokens auto")
    folder = None
    if asked == "auto" and threshold is None:
        found = locate(path)
        folder = found if isinstance(found, Path) else resolve(path, weights=False)
    return budget_of(processor.plan, asked, threshold=threshold, folder=folder)


def several(
    processor: Processor, asked: str | None, *, path: str, threshold: str | None, every: bool
) -> Choices:
    """All budgets of a list, ascending, auto last; `every`: all of the model's where none is named.

    One entry with the empty name if nothing is asked for.
    """
    from retinue.core.errors import ConfigError

    if asked is None and not every:
        return {"": chosen(processor, None, path=path, threshold=threshold)}
    names = [name.strip() for name in (asked or "all").split(",")]
    if "all" in names or (every and set(names) == {"auto"}):
        from retinue.decode.auto import elastic_only

        elastic_only(processor.plan, asked or "several numbers of")
        names = [str(b) for b in processor.plan.budgets] + [n for n in names if n == "auto"]
    if threshold is not None and "auto" not in names:
        raise ConfigError("--auto-threshold without auto", fix="--visual-tokens ...,auto")
    found: Choices = {}
    for name in names:
        own = threshold if name == "auto" else None
        budget = chosen(processor, name, path=path, threshold=own)
        found[str(budget) if isinstance(budget, int) else name] = budget
    return dict(sorted(found.items(), key=lambda item: (item[0] == "auto", item[0].zfill(9))))


def setting(budget: Budget) -> Any:
    """A budget as the record of a run keeps it."""
    return budget if budget is None or isinstance(budget, int) else budget.model_dump(mode="json")


def row_fields(answer: Any) -> dict[str, Any]:
    """What a row of answers says about visual tokens.

    visual_tokens: per view, null for a row without pictures to choose for; total: of all its
    pictures; spent: the same over all tries.
    """
    return {
        "visual_tokens": answer.budget,
        "visual_tokens_total": answer.visual_tokens,
        "visual_tokens_spent": answer.spent,
    }


class Clock:
    """Wall time of the answers that pass through it."""

    def __init__(self) -> None:
        self.seconds, self.count = 0.0, 0

    def watch(self, answers: Any) -> Any:
        """The same answers, timed from the first request on."""
        begin, before = monotonic(), self.seconds
        for answer in answers:
            self.count += 1
            self.seconds = before + monotonic() - begin
            yield answer

    @property
    def each(self) -> float | None:
        return self.seconds / self.count if self.count else None


def compare(
    choices: Choices,
    target: Path,
    *,
    write: Write,
    title: str,
    restart: bool = False,
    beside: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One evaluation per budget, and how they compare; returns the document.

    Beside `target`: a result and rows per budget, TARGET.curve.csv, TARGET.curve.png (with
    matplotlib) and TARGET.items.csv with the oracle's choice for every question. A comparison that
    was interrupted goes on where it was. beside: results of other comparisons by name, which are
    drawn and subtracted. Raises DataError for one that is none, before anything is asked.
    """
    import json

    from retinue.core.files import versions, write_json, writing
    from retinue.decode.rows import RowFile
    from retinue.eval import oracle

    others = {name: read_comparison(Path(path)) for name, path in (beside or {}).items()}
    marker = target.with_name(f"{target.stem}.unfinished-curve.json")
    with writing(marker):
        marker.parent.mkdir(parents=True, exist_ok=True)
    going_on = marker.exists() and not restart
    write_json(marker, {"choices": list(choices)})
    runs: dict[str, list[Any]] = {}
    seconds: dict[str, float | None] = {}
    documents: dict[str, dict[str, Any]] = {}
    for name, budget in choices.items():
        own = target.with_name(f"{target.stem}.{name}.json")
        settled = json.loads(own.read_text("utf-8")) if going_on and own.exists() else None
        clock = Clock()
        note(f"visual tokens: {name}")
        document = write(own, budget=budget, clock=clock, settled=settled, restart=not going_on)
        if document is not settled:
            document = {**document, "seconds_per_question": clock.each}
            write_json(own, document)
        documents[name], seconds[name] = document, document.get("seconds_per_question")
        runs[name] = RowFile(own.with_name(f"{own.stem}.rows.jsonl")).rows
    comparison = oracle.compare(runs, seconds=seconds)
    if others:
        comparison["beside"] = {
            name: {"budgets": curve, "differences": oracle.differences(runs, rows)}
            for name, (curve, rows) in others.items()
        }
    last = documents[str(max(oracle.fixed(runs)))]
    found = {
        **{key: last[key] for key in ("status", "metrics", "tasks", "counts")},
        "comparison": comparison,
        "settings": {
            **last["settings"],
            "visual_tokens": {name: setting(budget) for name, budget in choices.items()},
        },
        "versions": versions(),
    }
    for place in {target, target.parent / "run.json"}:
        write_json(place, found)
    curve = target.with_name(f"{target.stem}.curve.csv")
    items = target.with_name(f"{target.stem}.items.csv")
    with writing(curve):
        curve.write_text(oracle.curve_csv(comparison), "utf-8")
        items.write_text(oracle.items_csv(runs), "utf-8")
    draw(comparison, curve.with_suffix(".png"), title=title)
    marker.unlink()
    return found


def read_comparison(path: Path) -> tuple[Any, dict[str, list[Any]]]:
    """(points at fixed budgets, rows per choice) of a result file. Raises DataError."""
    import json

    from retinue.core.errors import DataError
    from retinue.decode.rows import RowFile

    try:
        document = json.loads(path.read_text("utf-8"))
        curve = document["comparison"]["budgets"]
        names = list(document["settings"]["visual_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "no comparison of budgets",
            where=str(path),
            rule=f"{type(error).__name__}: {error}",
            fix="name a result of `retinue eval --visual-tokens N,N,...`",
        ) from None
    rows = {name: RowFile(path.with_name(f"{path.stem}.{name}.rows.jsonl")).rows for name in names}
    return curve, rows


def draw(comparison: Mapping[str, Any], path: Path, *, title: str) -> None:
    """The curve as a picture; a note where matplotlib is missing."""
    from retinue.core.errors import EnvError
    from retinue.eval.plot import draw_curve

    try:
        draw_curve(comparison, path, title=title)
    except EnvError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        note(str(error))


def fit(target: Path, names: Sequence[str], out: Path, *, tolerance: float) -> None:
    """Write the automatic budget fitted on the rows of a comparison, and say what it reaches."""
    from retinue.core.files import write_json, writing
    from retinue.decode.auto import FILE
    from retinue.decode.rows import RowFile
    from retinue.eval.fit_auto import fit_auto
    from retinue.eval.oracle import fixed, shared

    rows = {
        name: RowFile(target.with_name(f"{target.stem}.{name}.rows.jsonl")).rows for name in names
    }
    found = fit_auto(fixed(shared(rows)), tolerance=tolerance)
    out = out / FILE if out.is_dir() else out
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found.policy.model_dump(mode="json"))
    tries = ", ".join(
        f"{rung.visual_tokens} tokens from {rung.threshold:.3f}" for rung in found.policy.rungs
    )
    note(
        f"automatic budget in {out}: {found.policy.measure} confidence, {tries}; here it scores "
        f"{found.score:.4f} with {found.spent:.1f} visual tokens a question in all tries"
    )
