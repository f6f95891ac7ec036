"""The picture of accuracy against visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue.core.errors import EnvError
from retinue.core.files import writing


def draw_curve(comparison: Mapping[str, Any], path: str | Path, *, title: str = "") -> None:
    """Write a PNG: fixed budgets with their standard errors, the automatic budget, the oracle.

    comparison: of `eval.oracle.compare`; its `beside`, other comparisons by name, are drawn too.
    The axis of tokens is logarithmic; the automatic budget stands at the tokens of all its tries.
    Raises EnvError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvError(
            "no picture of the curve without matplotlib", fix="pip install 'retinue[train]'"
        ) from error
    figure = Figure(figsize=(6, 4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curve = comparison["budgets"]
    tokens = [max(own["visual_tokens"], 0.5) for own in curve]
    axes.errorbar(
        tokens,
        [100 * own["score"] for own in curve],
        yerr=[100 * own["stderr"] for own in curve],
        marker="o",
        capsize=3,
        label="fixed budgets",
    )
    for name, other in comparison.get("beside", {}).items():
        axes.errorbar(
            [max(own["visual_tokens"], 0.5) for own in other["budgets"]],
            [100 * own["score"] for own in other["budgets"]],
            yerr=[100 * own["stderr"] for own in other["budgets"]],
            marker=".",
            linestyle="--",
            capsize=3,
            label=name,
        )
    marks = {"auto": ("s", "spent", "automatic"), "oracle": ("*", "visual_tokens", "oracle")}
    for name, (mark, key, label) in marks.items():
        if name not in comparison:
            continue
        own = comparison[name]
        axes.errorbar(
            [max(own[key], 0.5)],
            [100 * own["score"]],
            yerr=[100 * own["stderr"]],
            marker=mark,
            markersize=9,
            linestyle="none",
            capsize=3,
            label=label,
        )
    axes.set_xscale("log")
    axes.set_xticks(tokens, [f"{value:.4g}" for value in tokens])
    axes.minorticks_off()
    axes.set_xlabel("mean visual tokens per question")
    axes.set_ylabel("score (%)")
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with writing(Path(path)):
        figure.savefig(path, format="png")
