"""Score against visual tokens as SVG, for the page of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

WIDE, HIGH, LEFT, LOW = 560, 240, 46, 34
COLOURS = {"auto": "#e69f00", "oracle": "#009e73"}


def curve(comparison: Mapping[str, Any]) -> str:
    """The fixed budgets as a line with standard errors, the automatic choice and the oracle.

    comparison: of `eval.oracle.compare`. The axis of tokens is logarithmic.
    """
    fixed = [point(own) for own in comparison["budgets"]]
    marked = {
        name: point(comparison[name], key="spent" if name == "auto" else "visual_tokens")
        for name in COLOURS
        if name in comparison
    }
    every = [*fixed, *marked.values()]
    first, last = min(x for x, _, _ in every), max(x for x, _, _ in every)
    bottom = max(0.0, min(y - e for _, y, e in every))
    top = min(1.0, max(y + e for _, y, e in every))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / max(last - first, 1e-9)
        up = (y - bottom) / max(top - bottom, 1e-9)
        return (
            round(LEFT + across * (WIDE - LEFT - 40), 1),
            round(10 + (1 - up) * (HIGH - 10 - LOW), 1),
        )

    line = " ".join("{},{}".format(*place(x, y)) for x, y, _ in fixed)
    parts = [f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.5"/>']
    for x, y, error in fixed:
        (across, up), (_, high), (_, low) = place(x, y), place(x, y + error), place(x, y - error)
        parts.append(f'<path d="M{across} {high}V{low}" stroke="#0072b2"/>')
        parts.append(f'<circle cx="{across}" cy="{up}" r="3.5" fill="#0072b2"/>')
        label = f"{2**x:.4g}"
        parts.append(f'<text x="{across}" y="{HIGH - 16}" text-anchor="middle">{label}</text>')
    for name, (x, y, _) in marked.items():
        across, up = place(x, y)
        parts.append(f'<circle cx="{across}" cy="{up}" r="5" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{across + 8}" y="{up - 6}">{escape(name)}</text>')
    for y in sorted({bottom, (bottom + top) / 2, top}):
        parts.append(f'<text x="4" y="{place(first, y)[1] + 4}">{y * 100:.1f}</text>')
    legend = "mean score in per cent by mean visual tokens of a question"
    return (
        f'<h2>Visual tokens</h2><svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{legend}" '
        f'font-size="12" fill="currentColor" style="max-width:{WIDE}px;width:100%">'
        f'{"".join(parts)}</svg><p class="r">{legend}</p>'
    )


def point(own: Mapping[str, Any], *, key: str = "visual_tokens") -> tuple[float, float, float]:
    """(logarithm of tokens, score, standard error) of a budget."""
    return math.log2(max(float(own[key]), 0.5)), float(own["score"]), float(own["stderr"])
